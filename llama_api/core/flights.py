"""A *flight* is one generation under way and the one shape of an answer: the pieces so far, then an outcome.

Whoever wants the answer is a reader of the flight; its producer never waits for a reader.
"""

import _thread
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from ..waiting import Cancellation

READER_TICK = 0.5  # seconds between two looks whether a waiting client is still there


class ReaderGone(Exception):
    """The client of this reader has closed its connection."""


class Shared:
    """Lets all who ask for one key at the same time share one call."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._under_way: dict[str, list[Any]] = {}  # by key: the event of its end, then its result

    def call(self, key: str, function: Callable[[], Any]) -> Any:
        """What ``function`` returns, called here or by whoever asked for ``key`` first. It must not raise."""
        with self._lock:
            mine = key not in self._under_way
            call = self._under_way.setdefault(key, [threading.Event(), None])
        if not mine:
            call[0].wait()
            return call[1]
        try:
            call[1] = function()
        finally:
            with self._lock:
                del self._under_way[key]
            call[0].set()
        return call[1]


class Flight:
    """One generation under way: the pieces so far, then its outcome."""

    def __init__(self, key: str | None):
        self.key = key
        self.cancellation = Cancellation()
        self.readers = 0
        # Times on the monotonic clock: the start, the end of its wait for a slot, the first piece, the landing.
        self.started_at = time.monotonic()
        self.slot_at: float | None = None
        self.first_piece_at: float | None = None
        self.landed_at: float | None = None
        self.claimed = False  # other processes may be waiting for it
        self.followed = False  # another process generates it
        self.found: Any = None  # an answer that came into the cache just before the start
        self.stored = False  # the cache has taken its answer
        self.pieces: list[str] = []
        self.outcome: Any = None
        self.error: BaseException | None = None
        self.landed = False
        self._lock = threading.Lock()
        self._piece_came = threading.Condition(self._lock)
        self._has_landed = threading.Condition(self._lock)

    def publish(self, piece: str) -> None:
        """Add a piece of text and wake those who stream."""
        with self._lock:
            if self.first_piece_at is None:
                self.first_piece_at = time.monotonic()
            self.pieces.append(piece)
            self._piece_came.notify_all()

    def land(self, outcome: Any = None, error: BaseException | None = None) -> None:
        """End the flight with an outcome or an error, and wake everybody."""
        with self._lock:
            self.outcome, self.error, self.landed = outcome, error, True
            self.landed_at = self.landed_at or time.monotonic()
            self._piece_came.notify_all()
            self._has_landed.notify_all()

    def wait_piece(self, seen: int, seconds: float) -> bool:
        """Wait until there is a piece beyond ``seen`` or the end; False when ``seconds`` passed first."""
        with self._lock:
            return self._piece_came.wait_for(lambda: self.landed or len(self.pieces) > seen, seconds)

    def wait_landed(self, seconds: float) -> bool:
        """Wait until the flight has landed; False when ``seconds`` passed first."""
        with self._lock:
            return self._has_landed.wait_for(lambda: self.landed, seconds)


class Reader:
    """One client's view of a flight. ``gone`` tells whether that client has left; close() when done."""

    def __init__(self, flight: Flight, flights: "Flights", gone: Callable[[], bool], joined_at: float):
        self.flight, self.joined_at = flight, joined_at
        self._flights, self._gone, self._open = flights, gone, True

    def start(self) -> None:
        """Wait for the first piece or the end. Raises the flight's error when there is no piece, or ReaderGone."""
        while not self.flight.wait_piece(0, READER_TICK):
            self._check()
        if not self.flight.pieces:
            self.outcome()

    def pieces(self) -> Iterator[str]:
        """Give the pieces so far at once, then each as it comes. Raises the flight's error, or ReaderGone."""
        seen = 0
        while True:
            while not self.flight.wait_piece(seen, READER_TICK):
                self._check()
            if seen == len(self.flight.pieces):
                break
            yield self.flight.pieces[seen]
            seen += 1
        self.outcome()

    def outcome(self) -> Any:
        """Wait for the end and return the outcome. Raises the flight's error, or ReaderGone."""
        while not self.flight.wait_landed(READER_TICK):
            self._check()
        if self.flight.error is not None:
            raise self.flight.error.with_traceback(None)  # one error, many readers: their stacks must not pile up
        return self.flight.outcome

    def close(self) -> None:
        """Leave the flight; the last one to leave cancels it."""
        if self._open:
            self._open = False
            self._flights.leave(self.flight)

    def _check(self) -> None:
        if self._gone():
            raise ReaderGone


class Flights:
    """The flights under way in this process, by key: at most one a key."""

    def __init__(self) -> None:
        self._flights: dict[str, Flight] = {}
        self._lock = threading.Lock()
        self.count = 0  # of flights whose producer has not ended, those without a key too

    def board(self, key: str | None, produce: Callable[[Flight], Any], gone: Callable[[], bool]) -> tuple[Reader, bool]:
        """Join the flight of ``key`` or start one; tells whether it was started. None as the key is never shared.

        ``produce`` runs in a thread of its own; what it returns or raises is the flight's outcome.
        """
        with self._lock:
            flight = self._flights.get(key) if key is not None else None
            started = flight is None
            if flight is None:
                flight = Flight(key)
                self.count += 1
                if key is not None:
                    self._flights[key] = flight
            flight.readers += 1
        if started:
            _thread.start_new_thread(self._fly, (flight, produce))  # a Thread's handshake would cost the caller 0.1 ms
        return Reader(flight, self, gone, flight.started_at if started else time.monotonic()), started

    def leave(self, flight: Flight) -> None:
        """Count one reader less. A flight that other processes may wait for is left to ``cancel_if_unread``."""
        with self._lock:
            flight.readers -= 1
        if not flight.claimed:
            self.cancel_if_unread(flight)

    def cancel_if_unread(self, flight: Flight) -> bool:
        """Cancel ``flight`` when it has no reader; nobody can join it from then on."""
        with self._lock:
            if flight.readers or flight.landed:
                return False
            self._remove(flight)
        flight.cancellation.request()
        return True

    def _remove(self, flight: Flight) -> None:
        if flight.key is not None and self._flights.get(flight.key) is flight:
            del self._flights[flight.key]

    def _fly(self, flight: Flight, produce: Callable[[Flight], Any]) -> None:
        outcome, error = None, None
        try:
            outcome = produce(flight)
        except BaseException as raised:  # a reader must never wait for a producer that has died
            error = raised
        with self._lock:
            self._remove(flight)
            self.count -= 1
        flight.land(outcome, error)
