"""The activity of all workers: the generations under way, which can be ended, and the last requests."""

import hashlib
import os
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from operator import itemgetter
from pathlib import Path
from typing import Any

from ..core import Flight, Flights
from ..strict_json import Json
from .peers import Peer, Peers

FOLDER = "workers-2"  # the version of the shared files; raise it with their format, as a reload may bring newer code
LAST = 50  # requests to report
ORDER_SECONDS = 2.0  # to wait until another worker has ended a flight; it checks four times a second
ORDER_KEPT_SECONDS = 10.0
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

    def request_ended(self, record: Json, endpoint: str, status: int, seconds: float) -> None:
        """Remember one request: ``record`` has the fields of its log line, ``endpoint`` is the pattern of its URL."""
        if not self._only_looks(endpoint):
            self._requests.append((time.time(), endpoint, status, record.get("cache"), seconds))

    def snapshot(self) -> Json:
        """The ``flights``, oldest first, and the last ``requests``, newest first, as in GET /stats."""
        with suppress(OSError):
            self.publish()  # so that every worker can end what this one shows
        others, ending = self._others(), self.ending()
        now, requests = time.monotonic(), sorted(self._all_requests(others), key=_ended_at, reverse=True)
        flights = joined([flight for flight in self._all_flights(others) if flight["id"] not in ending])
        return {"flights": [
            {"id": flight["id"], "age_s": round(max(0.0, now - flight["since"]), 1),
             **{name: flight[name] for name in ("state", "readers", "tokens", "host")}}
            for flight in sorted(flights, key=itemgetter("since"))], "requests": [
            {"time": datetime.fromtimestamp(ended, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
             "endpoint": endpoint, "status": status, "cache": cache, "duration_ms": round(seconds * 1000, 3)}
            for ended, endpoint, status, cache, seconds in requests[:LAST]]}

    def cancel(self, flight_id: str) -> bool:
        """End a flight wherever it is; its readers get GenerationCancelled. False when there is no such flight.

        A worker that does not answer within ORDER_SECONDS ends its flight later; it is not listed meanwhile.
        """
        if self._flights.cancel(flight_id):
            with suppress(OSError):  # without its file, others list it until the next report
                self._order(flight_id)
            return True
        if self._orders is None or not self._reported(flight_id):
            return False
        self._order(flight_id)
        deadline = time.monotonic() + ORDER_SECONDS
        while self._reported(flight_id) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        return True

    def ending(self) -> frozenset[str]:
        """The ids of the flights that have lately been cancelled."""
        try:
            return frozenset(os.listdir(self._orders)) if self._orders is not None else frozenset()
        except OSError:  # before the first worker has joined, or without a place for files
            return frozenset()

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
        """End the flights of this worker that others were asked to end. Raises OSError if this cannot be published."""
        ending = self.ending()
        if any([self._flights.cancel(flight.id) for flight in self._uncancelled() if flight.id in ending]):
            self.publish()

    def tidy(self) -> None:
        """Forget ended flights, and dead workers none of whose requests is among the last ones. Raises OSError."""
        if self._peers is not None and self._orders is not None:
            others = self._others()
            last = sorted(map(_ended_at, self._all_requests(others)))[-LAST:]
            for other in others:
                if not other.alive and not any(request[0] >= last[0] for request in other.news["requests"]):
                    self._peers.forget(other.name)
            for order in self._orders.iterdir():
                with suppress(FileNotFoundError):  # another worker tidies too
                    if time.time() - order.stat().st_mtime > ORDER_KEPT_SECONDS and not self._reported(order.name):
                        order.unlink()

    def _order(self, flight_id: str) -> None:
        if self._orders is not None:
            (self._orders / flight_id).touch()

    def _own_flights(self) -> list[Json]:
        return [self._described(flight) for flight in self._uncancelled()]

    def _uncancelled(self) -> list[Flight]:
        return [flight for flight in self._flights.under_way() if not flight.cancellation.requested]

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

    def _reported(self, flight_id: str) -> bool:
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
