"""The way to the model: so many slots, a bounded queue before them, and nobody waits for ever."""

import fcntl
import math
import os
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import QueueFull, QueueTimeout
from ..waiting import Cancellation, Cancelled

SLOT_POLL = 0.02  # seconds between two tries for a slot that other processes hold


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
        """Hold a slot for the block; gives the seconds waited for it. Raises QueueFull, QueueTimeout or Cancelled."""
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
                raise QueueFull(self.limit, self.retry_after())
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
                raise QueueTimeout(self._wait_seconds, self.retry_after())
            # Other processes cannot wake us. The jitter gives each of them its turn.
            turn.wait(min(remaining, SLOT_POLL * random.uniform(0.5, 1.5)) if self._shared else remaining)

    def _call_next(self) -> None:
        if self._queue and not self._peers:
            next(iter(self._queue)).set()
