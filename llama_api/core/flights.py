"""A *flight* is one generation under way: the pieces so far, then a landing.

Every generated answer is read from a flight by any number of readers; its producer never waits for a reader.
"""

import _thread
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from ..answer import Answer, Piece
from ..errors import ClientGone, GenerationCancelled
from ..waiting import Cancellation, Cancelled, Progress, Wait

READER_TICK = 0.5  # seconds between two checks that a waiting client is still there


class Landing(NamedTuple):
    """The end of a flight: its answer, the source of that, and whether it was stored.

    ``source`` is ``generated`` by this process, ``followed`` if another one did, or ``found`` in the cache; then
    ``born`` is the answer's time on the monotonic clock. ``ended_at`` is on that clock too. A flight of embeddings has
    ``answers`` by key.
    """

    answer: Answer
    source: str
    stored: bool
    ended_at: float
    born: float | None = None
    answers: Mapping[str, Answer] = MappingProxyType({})


class Flight:
    """One generation under way: the pieces so far, then its landing. ``progress`` is its state meanwhile.

    ``keys`` are the keys by which it can be joined: ``key`` alone, or those of the texts that it embeds.
    """

    def __init__(self, key: str | None, model: str = "", keys: Sequence[str] = ()):
        self.key, self.model, self.keys = key, model, keys or ([key] if key is not None else [])
        self.id = secrets.token_hex(8)
        self.cancellation = Cancellation()
        self.progress = Progress()
        self.readers = 0
        self.shared = False  # other processes may be waiting for it
        self.followed = False  # it waits for the flight of another process
        self.started_at = time.monotonic()
        self.pieces: list[Piece] = []
        self.landing: Landing | None = None
        self.error: BaseException | None = None
        self.landed = False
        self._watchers: dict[threading.Event, None] = {}  # set at the landing
        self._piece_watchers: dict[threading.Event, None] = {}  # set at each publication as well

    def watch(self, event: threading.Event, pieces: bool) -> None:
        """Set ``event`` when the flight lands, and with ``pieces`` also at each publication."""
        (self._piece_watchers if pieces else self._watchers)[event] = None

    def unwatch(self, event: threading.Event) -> None:
        """Stop setting ``event``."""
        self._piece_watchers.pop(event, None)
        self._watchers.pop(event, None)

    def publish(self, pieces: Sequence[Piece]) -> None:
        """Add pieces that arrived together and wake the streaming readers."""
        self._add(pieces)
        for event in list(self._piece_watchers):  # a copy, as readers come and go meanwhile
            event.set()

    def land(self, landing: Landing | None = None, error: BaseException | None = None) -> None:
        """End the flight with a landing or an error, and wake all readers.

        An answer that was not generated here gets its pieces only now, so that readers know its source first.
        """
        if landing is not None and landing.source != "generated":
            self._add(landing.answer.pieces)
        self.landing, self.error = landing, error
        self.landed = True
        for event in (*self._piece_watchers, *self._watchers):
            event.set()

    def _add(self, pieces: Sequence[Piece]) -> None:
        if pieces and not self.pieces:
            self.progress.first_piece_at, self.progress.state = time.monotonic(), "writing"
        self.pieces += pieces


class Reader:
    """One client's view of a flight. ``gone`` returns whether that client has left; close() when done."""

    def __init__(self, flight: Flight, flights: "Flights", gone: Callable[[], bool], joined_at: float):
        self.flight, self.joined_at = flight, joined_at
        self._flights, self._gone, self._open = flights, gone, True
        self._seen, self._silent = 0, False
        self._news: threading.Event | None = None

    def start(self, silence: float | None = None) -> None:
        """Wait for the first piece or the end, at most ``silence`` seconds, after which ``events`` begins with a Wait.

        Raises the flight's error when it ends without a piece, or ClientGone.
        """
        self._silent = not self._wait_piece(silence)
        if not self._silent and not self.flight.pieces:
            self.outcome()

    def events(self, silence: float | None = None) -> Iterator[list[Piece] | Wait]:
        """Yield the pieces so far at once, then new ones, and a Wait after each ``silence`` seconds without any.

        Raises the flight's error, or ClientGone.
        """
        pieces = self.flight.pieces
        while True:
            if self._silent or not self._wait_piece(silence):
                self._silent = False
                yield self.flight.progress.wait()
            elif self._seen == (there := len(pieces)):
                break
            else:
                batch, self._seen = pieces[self._seen:there], there
                yield batch
        self.outcome()

    def outcome(self) -> Landing:
        """Wait for the end and return the landing. Raises the flight's error, or ClientGone."""
        news = self._watch(pieces=False)
        while not self.flight.landed:
            if not news.wait(READER_TICK):
                self._check()
            news.clear()
        if self.flight.error is not None:
            raise self.flight.error.with_traceback(None)  # many readers raise one error: do not accumulate their stacks
        assert self.flight.landing is not None
        return self.flight.landing

    def close(self) -> None:
        """Leave the flight; the last one to leave cancels it."""
        if self._open:
            self._open = False
            if self._news is not None:
                self.flight.unwatch(self._news)
            self._flights.leave(self.flight)

    def _wait_piece(self, silence: float | None) -> bool:
        """Wait for a piece beyond those seen or the end; False when ``silence`` seconds passed first."""
        news, flight = self._watch(pieces=True), self.flight
        until = None if silence is None else time.monotonic() + silence
        while True:
            news.clear()  # before the check, so that later news sets it again
            if flight.landed or len(flight.pieces) > self._seen:
                return True
            if not news.wait(READER_TICK if until is None else min(READER_TICK, max(0.0, until - time.monotonic()))):
                self._check()
                if until is not None and time.monotonic() >= until:
                    return False

    def _watch(self, pieces: bool) -> threading.Event:
        """The event that signals possible news."""
        if self._news is None:
            self._news = threading.Event()
            self.flight.watch(self._news, pieces)
        return self._news

    def _check(self) -> None:
        if self._gone():
            raise ClientGone


class Joined(NamedTuple):
    """A flight of several keys, joined for some of them; ``own`` says whether this request started it."""

    reader: Reader
    keys: Sequence[str]
    own: bool


class Flights:
    """The flights of this process by key, at most one joinable flight per key."""

    def __init__(self) -> None:
        self._joinable: dict[str, Flight] = {}
        self._all: dict[str, Flight] = {}  # by id, until their producer ends
        self._lock = threading.Lock()

    @property
    def count(self) -> int:
        """The number of flights whose producer has not ended."""
        return len(self._all)

    def under_way(self) -> list[Flight]:
        """The flights whose producer has not ended, oldest first."""
        with self._lock:
            return list(self._all.values())

    def join_or_start(self, key: str | None, produce: Callable[[Flight], Landing], gone: Callable[[], bool],
                      model: str = "") -> tuple[Reader, bool]:
        """Join the flight of ``key`` or start one; returns also whether it was started. The key None is never shared.

        ``produce`` runs in its own thread; the flight ends with its landing or its exception.
        """
        with self._lock:
            flight = self._joinable.get(key) if key is not None else None
            started = flight is None
            if flight is None:
                flight = self._begin(key, model)
            flight.readers += 1
        if started:
            # A Thread's handshake would cost the caller 0.1 ms.
            _thread.start_new_thread(self._produce, (flight, produce))
        return Reader(flight, self, gone, flight.started_at if started else time.monotonic()), started

    def join_or_start_several(self, keys: Sequence[str], produce: Callable[[Flight], Landing], gone: Callable[[], bool],
                              model: str, join: bool = True) -> list["Joined"]:
        """Join the flights that carry some of ``keys``, unless ``join`` is false, and start one for the rest."""
        joined: dict[Flight, list[str]] = {}
        with self._lock:
            for key in keys if join else ():
                if (flight := self._joinable.get(key)) is not None:
                    joined.setdefault(flight, []).append(key)
            carried = {key for some in joined.values() for key in some}
            rest = [key for key in keys if key not in carried]
            own = self._begin(None, model, rest) if rest else None
            for flight in [*joined, *([own] if own is not None else [])]:
                flight.readers += 1
        now = time.monotonic()
        found = [Joined(Reader(flight, self, gone, now), some, False) for flight, some in joined.items()]
        if own is not None:
            _thread.start_new_thread(self._produce, (own, produce))
            found.append(Joined(Reader(own, self, gone, own.started_at), rest, True))
        return found

    def leave(self, flight: Flight) -> None:
        """Count one reader less, and cancel an unread flight, unless other processes may wait for it."""
        with self._lock:
            flight.readers -= 1
        if not flight.shared:
            self.cancel_if_unread(flight)

    def cancel_if_unread(self, flight: Flight) -> bool:
        """Cancel ``flight`` if it has no reader; it can no longer be joined then."""
        with self._lock:
            if flight.readers or flight.landed:
                return False
            self._close_to_joiners(flight)
        flight.cancellation.request()
        return True

    def cancel(self, flight_id: str) -> bool:
        """End a flight by its id; its readers get GenerationCancelled. False when there is no such flight."""
        with self._lock:
            flight = self._all.get(flight_id)
            if flight is None or flight.landed:
                return False
            self._close_to_joiners(flight)
        flight.cancellation.request(GenerationCancelled())
        return True

    def close_to_joiners(self) -> None:
        """Make the current flights unjoinable, as after a purge nothing begun before it may be joined."""
        with self._lock:
            self._joinable.clear()

    def _begin(self, key: str | None, model: str, keys: Sequence[str] = ()) -> Flight:
        flight = Flight(key, model, keys)
        self._all[flight.id] = flight
        for one in flight.keys:
            self._joinable[one] = flight
        return flight

    def _close_to_joiners(self, flight: Flight) -> None:
        for key in flight.keys:
            if self._joinable.get(key) is flight:
                del self._joinable[key]

    def _produce(self, flight: Flight, produce: Callable[[Flight], Landing]) -> None:
        landing, error = None, None  # type: Landing | None, BaseException | None
        try:
            landing = produce(flight)
        except Cancelled as cancelled:
            error = flight.cancellation.reason or cancelled
        except BaseException as raised:  # readers must not wait for a dead producer
            error = raised
        with self._lock:
            self._close_to_joiners(flight)
            del self._all[flight.id]
        flight.land(landing, error)
