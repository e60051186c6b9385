"""Slots, queues, shared generations and time limits: everything here is about who waits for whom.

A *flight* is one generation under way and the one shape of an answer: the pieces so far, then an outcome. Whoever
wants the answer is a reader of the flight; its producer never waits for a reader.
"""

import _thread
import fcntl
import logging
import math
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

logger = logging.getLogger(__name__)

WATCH_TICK = 0.05  # seconds: how late a time limit may strike
READER_TICK = 0.5  # seconds between two looks whether a waiting client is still there
SLOT_POLL = 0.02  # seconds between two tries for a slot that other processes hold


class GateClosed(Exception):
    """No slot, and no room or no time left to wait. ``retry_after`` is in whole seconds."""

    def __init__(self, reason: str, retry_after: int):
        self.retry_after = retry_after
        super().__init__(reason)


class Cancelled(Exception):
    """Nobody waits for this generation any more."""


class ReaderGone(Exception):
    """The client of this reader has closed its connection."""


class Watchdog:
    """Runs an action when its time limit passes, with one thread for any number of limits."""

    def __init__(self) -> None:
        self._limits: dict[object, tuple[float, Callable[[], None]]] = {}
        self._busy = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def watch(self, seconds: float, action: Callable[[], None]) -> object:
        """Run ``action`` in another thread after ``seconds``, unless what this returns is given to ``forget`` first."""
        handle = object()
        self._limits[handle] = (time.monotonic() + seconds, action)
        if not self._busy.is_set():
            self._busy.set()
            with self._lock:
                if self._thread is None:
                    self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
                    self._thread.start()
        return handle

    def forget(self, handle: object) -> None:
        """Lift the limit that ``handle`` stands for."""
        self._limits.pop(handle, None)

    @contextmanager
    def limit(self, seconds: float, action: Callable[[], None]) -> Iterator[None]:
        """Run ``action`` in another thread when the block takes longer than ``seconds``."""
        handle = self.watch(seconds, action)
        try:
            yield
        finally:
            self.forget(handle)

    def _run(self) -> None:
        while True:
            self._busy.wait()
            time.sleep(WATCH_TICK)
            now = time.monotonic()
            for handle, (deadline, action) in list(self._limits.items()):
                if now >= deadline and self._limits.pop(handle, None) is not None:  # else the block has just ended
                    try:
                        action()
                    except Exception:
                        logger.exception("a time limit's action failed")
            self._busy.clear()
            if self._limits:
                self._busy.set()


class Cancellation:
    """Asks a producer to stop, whatever it is waiting for at that moment."""

    def __init__(self) -> None:
        self.requested = False
        self._interrupt: Callable[[], None] | None = None

    def request(self) -> None:
        """Stop: interrupt the wait that is under way; the next one will not begin."""
        self.requested = True
        if interrupt := self._interrupt:
            interrupt()

    @contextmanager
    def interrupts(self, interrupt: Callable[[], None]) -> Iterator[None]:
        """Have ``interrupt`` called on a request inside the block. Raises Cancelled if one came before."""
        self._interrupt = interrupt
        try:
            if self.requested:
                raise Cancelled
            yield
        finally:
            self._interrupt = None


class SlotFiles:
    """Slots that all processes of the service share: a lock on one file each, which the kernel frees at any death."""

    def __init__(self, directory: str, slots: int):
        self._directory, self._slots = directory, slots
        self._opened = 0
        self._free: list[int] = []  # descriptors of those that this process does not hold

    def take(self) -> int | None:
        """Lock a free slot, or return None. Never blocks."""
        for slot in self._free:
            if _try_lock(slot):
                self._free.remove(slot)
                return slot
        while self._opened < self._slots:
            path = os.path.join(self._directory, f"slot-{self._opened}")
            slot = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            self._opened += 1
            if _try_lock(slot):
                return slot
            self._free.append(slot)
        return None

    def give_back(self, slot: int) -> None:
        """Unlock ``slot``."""
        fcntl.flock(slot, fcntl.LOCK_UN)
        self._free.append(slot)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class _Slots:
    """Slots of this process alone."""

    def __init__(self, slots: int):
        self._free = slots

    def take(self) -> int | None:
        if not self._free:
            return None
        self._free -= 1
        return self._free

    def give_back(self, slot: int) -> None:
        self._free += 1


class Gate:
    """At most ``slots`` at once, at most ``limit`` waiting in order, none longer than ``wait_seconds``.

    With a ``directory`` the slots are those of all processes that use it. ``peers`` tells that others do all the time:
    then a slot given back is not at once taken again by the next one here.
    """

    def __init__(self, slots: int, limit: int, wait_seconds: float, directory: str | None = None, peers: bool = False):
        self.slots, self.limit, self._wait_seconds = slots, limit, wait_seconds
        self._shared, self._peers = directory is not None, peers
        self._slots = SlotFiles(directory, slots) if directory is not None else _Slots(slots)
        self._lock = threading.Lock()
        self._queue: dict[threading.Event, None] = {}  # in order of arrival
        self._running: dict[object, float] = {}
        self._mean_seconds: float | None = None  # of a held slot, recent ones weigh most

    @property
    def running(self) -> int:
        """Slots that this process holds."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """How many of this process wait for a slot."""
        return len(self._queue)

    @contextmanager
    def slot(self, cancellation: Cancellation) -> Iterator[float]:
        """Hold a slot for the block; gives the seconds waited for it. Raises GateClosed or Cancelled."""
        arrived = time.monotonic()
        slot = self._enter(cancellation, arrived)
        handle, taken = object(), time.monotonic()
        self._running[handle] = taken
        try:
            yield taken - arrived
        finally:
            with self._lock:
                del self._running[handle]
                seconds = time.monotonic() - taken
                self._mean_seconds = seconds if self._mean_seconds is None else (
                    0.8 * self._mean_seconds + 0.2 * seconds)
                self._slots.give_back(slot)
                self._call_next()

    def retry_after(self) -> int:
        """Whole seconds after which a place should be free, from the recent speed."""
        mean = self._mean_seconds
        if mean is None:
            mean = time.monotonic() - min(self._running.values(), default=time.monotonic())
        return min(3600, max(1, math.ceil(mean * (self.waiting + 1) / self.slots)))

    def _enter(self, cancellation: Cancellation, arrived: float) -> int:
        with self._lock:
            slot = None if self._queue else self._slots.take()
            if slot is not None:
                return slot
            if len(self._queue) >= self.limit:
                raise GateClosed(f"every slot is busy and {self.limit} others wait already", self.retry_after())
            turn = threading.Event()
            self._queue[turn] = None
        try:
            with cancellation.interrupts(turn.set):
                return self._wait(turn, cancellation, arrived + self._wait_seconds)
        finally:
            with self._lock:
                self._queue.pop(turn, None)
                self._call_next()

    def _wait(self, turn: threading.Event, cancellation: Cancellation, deadline: float) -> int:
        while True:
            with self._lock:
                slot = self._slots.take() if next(iter(self._queue)) is turn else None
                if slot is not None:
                    return slot
                turn.clear()
            if cancellation.requested:
                raise Cancelled
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise GateClosed(f"no slot became free within {self._wait_seconds:g} s", self.retry_after())
            # Other processes cannot wake us. The jitter gives each of them its turn.
            turn.wait(min(remaining, SLOT_POLL * random.uniform(0.5, 1.5)) if self._shared else remaining)

    def _call_next(self) -> None:
        if self._queue and not self._peers:
            next(iter(self._queue)).set()


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
