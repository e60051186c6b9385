"""The activity of all workers: the generations under way, which can be ended, and the last requests."""

import hashlib
import time
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from operator import itemgetter
from pathlib import Path
from typing import Any

from ..core import Flight, Flights
from ..strict_json import Json
from .peers import Peer, Peers
from .shared_files import Watched

FOLDER = "workers-2"  # the version of the shared files; raise it with their format, as a reload may bring newer code
LAST = 50  # requests to report
ORDER_SECONDS = 2.0  # for another worker to end a flight; it checks four times a second
POLL_SECONDS = 0.02

_ended_at = itemgetter(0)  # of a request: when (since 1970), endpoint, status, cache, seconds


class Activity:
    """The flights and requests of this worker, and with a ``directory`` those of all workers that share it.

    Requests of an endpoint (the pattern of a URL) for which ``is_monitoring`` is true are left out.
    """

    def __init__(self, flights: Flights, is_monitoring: Callable[[str], bool], directory: Path | None = None):
        self._flights, self._only_looks = flights, is_monitoring
        self._requests: deque[tuple[float, str, int, str | None, float]] = deque(maxlen=LAST)
        self._peers = Peers(directory / FOLDER) if directory is not None else None
        self._orders = directory / "cancel" if directory is not None else None  # a file for each flight to be ended
        self._watched = Watched(self._orders) if self._orders is not None else None

    def request_ended(self, record: Json, endpoint: str, status: int, seconds: float) -> None:
        """Remember one request: ``record`` has the fields of its log line, ``endpoint`` is the pattern of its URL."""
        if not self._only_looks(endpoint):
            self._requests.append((time.time(), endpoint, status, record.get("cache"), seconds))

    def snapshot(self) -> Json:
        """The ``flights``, oldest first, and the last ``requests``, newest first, as in GET /stats."""
        others = self._others()
        now, requests = time.monotonic(), sorted(self._all_requests(others), key=_ended_at, reverse=True)
        return {"flights": [
            {"id": flight["id"], "age_s": round(max(0.0, now - flight["since"]), 1),
             **{name: flight[name] for name in ("state", "readers", "tokens", "host")}}
            for flight in sorted(joined(self._all_flights(others)), key=itemgetter("since"))], "requests": [
            {"time": datetime.fromtimestamp(ended, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
             "endpoint": endpoint, "status": status, "cache": cache, "duration_ms": round(seconds * 1000, 3)}
            for ended, endpoint, status, cache, seconds in requests[:LAST]]}

    def cancel(self, flight_id: str) -> bool:
        """End a flight wherever it is; its readers get GenerationCancelled. False when there is no such flight."""
        if self._orders is None:
            return self._flights.cancel(flight_id)
        if not self._lists(flight_id):
            return False
        order, deadline = self._orders / flight_id, time.monotonic() + ORDER_SECONDS
        order.touch()
        while order.exists() and self._lists(flight_id) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        order.unlink(missing_ok=True)  # whose worker may have died
        return True

    @property
    def revision(self) -> int:
        """A number that changes whenever a flight has been cancelled."""
        return self._watched.revision if self._watched is not None else 0

    # Called by the reporter four times a second

    def join(self) -> None:
        """Begin to exchange reports with the other workers. Raises OSError."""
        if self._peers is not None and self._orders is not None:
            self._orders.mkdir(parents=True, exist_ok=True)
            self._peers.join()

    def publish(self) -> None:
        """Report the activity of this worker to the others. Raises OSError."""
        if self._peers is not None:
            self._peers.tell({"flights": self._own_flights(), "requests": list(self._requests)})

    def obey(self) -> None:
        """End the flights of this worker that others were asked to end. Raises OSError."""
        if self._orders is not None:
            obeyed = [order for order in self._orders.iterdir() if self._flights.cancel(order.name)]
            if obeyed:
                self.publish()
            for order in obeyed:
                order.unlink(missing_ok=True)

    def tidy(self) -> None:
        """Forget dead workers none of whose requests is among the last ones. Raises OSError."""
        if self._peers is not None:
            others = self._others()
            last = sorted(map(_ended_at, self._all_requests(others)))[-LAST:]
            for other in others:
                if not other.alive and not any(request[0] >= last[0] for request in other.news["requests"]):
                    self._peers.forget(other.name)

    def _own_flights(self) -> list[Json]:
        return [self._described(flight) for flight in self._flights.under_way() if not flight.cancellation.requested]

    def _described(self, flight: Flight) -> Json:
        """The report of a flight to other workers; flights with the same ``subject`` wait for the same answer.

        ``since`` is on the monotonic clock, which all processes of a machine share.
        """
        return {"id": flight.id, "since": round(flight.started_at, 3),
                "subject": hashlib.sha256("".join(flight.keys).encode()).hexdigest(), "leads": flight.shared,
                "state": flight.progress.state, "readers": flight.readers, "tokens": len(flight.pieces),
                "host": flight.progress.host}

    def _others(self) -> list[Peer]:
        return list(self._peers.others()) if self._peers is not None else []

    def _all_flights(self, others: list[Peer]) -> list[Json]:
        return self._own_flights() + [flight for other in others if other.alive for flight in other.news["flights"]]

    def _all_requests(self, others: list[Peer]) -> list[Any]:
        return [*self._requests, *(request for other in others for request in other.news["requests"])]

    def _lists(self, flight_id: str) -> bool:
        return any(flight["id"] == flight_id for flight in self._all_flights(self._others()))


def joined(flights: list[Json]) -> list[Json]:
    """``flights``, with followers of another worker's flight counted as its readers."""
    leading = {flight["subject"]: dict(flight) for flight in flights if flight["leads"]}
    found = list(leading.values())
    for flight in flights:
        if not flight["leads"]:
            if (leader := leading.get(flight["subject"])) is None:
                found.append(flight)
            else:
                leader["readers"] += flight["readers"]
    return found
