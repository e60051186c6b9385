"""The queue of one worker for all Ollamas: a free slot takes the generation that has waited longest."""

import math
import random
import threading
import time
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Callable, Sequence, Set

from ..errors import OllamaError, OllamaUnavailable, QueueFull, QueueTimeout
from ..waiting import Cancellation, Cancelled, Wait
from .leases import Leases
from .upstream import Upstream
from .waiter import Choice, Kind, Slot, Waiter

LOOK_EVERY = 0.004  # approximate seconds between two checks of slots that other processes on the machine hold
LOOK_FAR_EVERY = 0.02  # the same if each check asks the store that counts over machines


class Queue:
    """Generations waiting for a slot, at most ``limit``, in order of arrival, for at most ``wait_seconds`` each.

    The order extends over the queues of all processes on the machine, and with ``leases`` over all machines.
    """

    def __init__(self, choice: Choice, limit: int, wait_seconds: float, leases: Leases | None = None):
        self._choice, self.limit, self._wait_seconds, self._leases = choice, limit, wait_seconds, leases
        self._lock, self._serving = threading.Lock(), threading.Lock()
        self._waiting: list[Waiter] = []  # in order of arrival
        self._kinds: Counter[Kind] = Counter()  # of the waiting
        self._announced: set[Upstream] = set()  # the Ollamas for which our wait is announced
        self._running: dict[Slot, Waiter] = {}
        self._mean_seconds: float | None = None  # for which a slot is held, weighted towards recent ones

    def __repr__(self) -> str:
        return f"<Queue: {self.running} running, {self.waiting} of {self.limit} waiting>"

    @property
    def running(self) -> int:
        """Slots that this process holds."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """The number of generations of this process that wait for a slot."""
        return len(self._waiting)

    def take(self, waiter: Waiter, cancellation: Cancellation, waits: Callable[[], object] = lambda: None,
             seconds: float | None = None) -> Slot:
        """Take a slot for ``waiter``, after a wait of at most ``seconds``; give it back with ``give_back``.

        ``waits`` is called when there is a wait. Raises QueueFull, QueueTimeout or Cancelled, and OllamaError when no
        Ollama is usable.
        """
        try:
            if (slot := self._at_once(waiter)) is not None:
                return slot
            waiter.woken = threading.Event()
            with self._lock:
                if len(self._waiting) >= self.limit and not waiter.tried:
                    raise QueueFull(self.limit, self.retry_after(waiter.model))
                insort(self._waiting, waiter, key=_since)
                self._kinds[waiter.kind] += 1
            waits()
            seconds = self._wait_seconds if seconds is None else seconds
            with cancellation.interrupts(waiter.woken.set):
                return self._wait(waiter, waiter.woken, cancellation, time.monotonic() + seconds, seconds)
        except BaseException:
            with self._lock:
                self._leave(waiter)
            if waiter.slot is not None:  # it got one at the last moment
                self.give_back(waiter.slot)
            raise
        finally:
            waiter.served = True
            if self._leases is not None:
                self._leases.served(waiter)

    def give_back(self, slot: Slot) -> None:
        """Give ``slot`` to the longest waiter, here or in another process."""
        seconds, mean = time.monotonic() - slot.at, self._mean_seconds
        self._mean_seconds = seconds if mean is None else 0.8 * mean + 0.2 * seconds
        self._free(slot)

    def serve_waiters(self) -> None:
        """Serve the waiters again, as the usable Ollamas may have changed."""
        if self._waiting:
            self._serve()
            with self._lock:
                self._wake_first()

    def estimate(self, waiter: Waiter) -> Wait:
        """The report to a waiting caller: its place, which only falls, and a time estimated from recent speed."""
        with self._lock:
            before = bisect_left(self._waiting, waiter.since, key=_since)
            waiter.before = before if waiter.before is None else min(before, waiter.before)
            mean = self._mean_seconds
            seconds = None if mean is None else max(1.0, mean * (waiter.before + 1) / self._slots(waiter.model))
            return Wait(waiter.before, seconds)

    def retry_after(self, model: str) -> int:
        """Whole seconds until a place should be free, estimated from recent speed."""
        mean = self._mean_seconds
        if mean is None:
            now = time.monotonic()
            mean = now - min((slot.at for slot in self._running), default=now)
        return min(3600, max(1, math.ceil(mean * (self.waiting + 1) / self._slots(model))))

    # Waiting

    def _wait(self, waiter: Waiter, woken: threading.Event, cancellation: Cancellation, deadline: float,
              seconds: float) -> Slot:
        every = LOOK_EVERY if self._leases is None else LOOK_FAR_EVERY
        if self._kinds[waiter.kind] == 1:  # no other waiter of its kind checks for slots
            self._serve()
        while True:
            with self._lock:
                first = bool(self._waiting) and self._waiting[0] is waiter
            if first:
                self._serve()
            if waiter.slot is not None:
                return waiter.slot
            if waiter.error is not None:
                raise waiter.error
            if cancellation.requested:
                raise Cancelled
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise QueueTimeout(seconds, self.retry_after(waiter.model))
            # Other processes cannot wake us. The jitter keeps their checks apart.
            looks = first and self._contested()
            woken.wait(min(remaining, every * random.uniform(0.5, 1.5)) if looks else remaining)
            woken.clear()

    def _wake_first(self) -> None:
        """Wake the first waiter if it must check for slots."""
        if self._waiting and self._contested():
            self._waiting[0].wake()

    def _contested(self) -> bool:
        """Whether other processes may hold slots that our waiters could use."""
        return any(upstream.slots.running < upstream.slots.number
                   for kind in list(self._kinds) for upstream in self._choice.hosts(kind[0]))

    def _leave(self, waiter: Waiter) -> None:
        """Remove ``waiter`` from the queue, if it is still in it."""
        place = bisect_left(self._waiting, waiter.since, key=_since)
        while place < len(self._waiting) and self._waiting[place].since == waiter.since:
            if self._waiting[place] is waiter:
                del self._waiting[place]
                self._kinds[waiter.kind] -= 1
                if not self._kinds[waiter.kind]:
                    del self._kinds[waiter.kind]
                if not self._waiting:
                    self._announce({})
                elif place == 0:
                    self._wake_first()
                return
            place += 1

    # Serving

    def _at_once(self, waiter: Waiter) -> Slot | None:
        """A free slot for a new waiter, unless an older one can use it. Raises why no Ollama is usable."""
        refused: set[Upstream] = set()
        while True:
            with self._lock:
                if waiter.kind in self._kinds:
                    return None
                if not (hosts := self._usable(waiter)) and (error := self._unusable_reason(waiter)) is not None:
                    raise error
                if self._waiting:
                    refused |= {upstream for kind in self._kinds for upstream in self._choice.hosts(kind[0])}
                slot = self._free_slot(waiter, [upstream for upstream in hosts if upstream not in refused])
                if slot is not None:
                    self._running[slot] = waiter
            if slot is None or self._leased(waiter, slot):
                return slot
            refused.add(slot.upstream)

    def _serve(self) -> None:
        """Give the free slots to waiters, and announce the remaining ones to the other processes."""
        if self._leases is None:
            with self._lock:
                while (pair := self._next(frozenset())) is not None:
                    self._give(*pair)
        elif self._serving.acquire(blocking=False):  # else another greenlet is serving
            try:
                self._serve_leased(self._leases)
            finally:
                self._serving.release()

    def _serve_leased(self, leases: Leases) -> None:
        """Serve with leases: the store is asked without holding the lock."""
        refused: set[tuple[Kind, Upstream]] = set()
        while True:
            with self._lock:
                if (pair := self._next(refused)) is None:
                    return
                waiter, slot = pair
                self._running[slot] = waiter
            leased = self._leased(waiter, slot)
            with self._lock:
                if here := leased and waiter in self._waiting:
                    self._give(waiter, slot)
            if not leased:
                refused.add((waiter.kind, slot.upstream))
            elif not here:  # it left meanwhile
                self._free(slot)
            if waiter.served:
                leases.served(waiter)

    def _leased(self, waiter: Waiter, slot: Slot) -> bool:
        """Whether ``waiter`` gets a lease for ``slot``; if not, the slot is given back."""
        if self._leases is None or self._leases.take(waiter, slot.upstream):
            return True
        with self._lock:
            del self._running[slot]
            slot.upstream.slots.give_back(slot.number)
        return False

    def _next(self, refused: Set[tuple[Kind, Upstream]]) -> tuple[Waiter, Slot] | None:
        """The next waiter and its slot; if there is none, the waiters are announced to the other processes."""
        stuck: set[Kind] = set()
        announced: dict[Upstream, float] = {}
        for waiter in self._waiting.copy():
            if waiter.kind in stuck:
                continue
            hosts = self._usable(waiter)
            slot = self._free_slot(waiter, [one for one in hosts if (waiter.kind, one) not in refused])
            if slot is not None:
                return waiter, slot
            if not hosts and (error := self._unusable_reason(waiter)) is not None:
                waiter.error = error
                self._leave(waiter)
                waiter.wake()
            else:
                stuck.add(waiter.kind)
                for upstream in hosts:
                    announced.setdefault(upstream, waiter.since)
            if len(stuck) == len(self._kinds):
                break
        self._announce(announced)
        return None

    def _announce(self, since: dict[Upstream, float]) -> None:
        for upstream in self._announced | since.keys():
            upstream.slots.announce(since.get(upstream))
        self._announced = set(since)

    def _free_slot(self, waiter: Waiter, hosts: Sequence[Upstream]) -> Slot | None:
        free = [upstream for upstream in hosts if upstream.slots.running < upstream.slots.number]
        for upstream in waiter.prefers(free) if len(free) > 1 else free:
            if (number := upstream.slots.take(waiter.since)) is not None:
                return Slot(upstream, number, time.monotonic())
        return None

    def _next_waiter_for(self, upstream: Upstream) -> Waiter | None:
        """The longest waiter here that may go to ``upstream``."""
        unfit: set[Kind] = set()
        for waiter in self._waiting:
            if waiter.kind not in unfit:
                if upstream in self._usable(waiter):
                    return waiter
                unfit.add(waiter.kind)
                if len(unfit) == len(self._kinds):
                    break
        return None

    def _free(self, slot: Slot) -> None:
        with self._lock:
            waiter, upstream = self._running.pop(slot), slot.upstream
            heir = self._next_waiter_for(upstream) if self._leases is None else None
            if heir is not None and not upstream.slots.older_elsewhere(heir.since):
                self._give(heir, Slot(upstream, slot.number, time.monotonic()))
                return
            upstream.slots.give_back(slot.number)
        if self._leases is not None:
            self._leases.give_back(waiter)
        with self._lock:
            self._wake_first()

    def _give(self, waiter: Waiter, slot: Slot) -> None:
        self._running[slot] = waiter
        waiter.slot = slot
        self._leave(waiter)
        waiter.wake()

    def _usable(self, waiter: Waiter) -> Sequence[Upstream]:
        hosts = self._choice.hosts(waiter.model)
        return [upstream for upstream in hosts if upstream not in waiter.tried] if waiter.tried else hosts

    def _unusable_reason(self, waiter: Waiter) -> OllamaError | None:
        """Why no Ollama will be usable for ``waiter``, None while waiting makes sense."""
        return OllamaUnavailable() if waiter.tried else self._choice.failure(waiter.model)

    def _slots(self, model: str) -> int:
        return max(1, sum(upstream.slots.number for upstream in self._choice.hosts(model)))


def _since(waiter: Waiter) -> float:
    return waiter.since
