"""The queue of one worker before all Ollamas: a free slot takes whoever has waited longest for it."""

import math
import random
import threading
import time
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import NamedTuple, Protocol

from ..errors import OllamaError, OllamaUnavailable, QueueFull, QueueTimeout
from ..waiting import Cancellation, Cancelled, Wait
from .upstream import Upstream

LOOK_EVERY = 0.004  # seconds, nearly, between two looks at slots that other processes hold


class Slot(NamedTuple):
    """A slot of an Ollama, taken ``at`` (monotonic)."""

    upstream: Upstream
    number: int
    at: float


class Choice(Protocol):
    """Which Ollamas a generation may go to."""

    def hosts(self, model: str) -> Sequence[Upstream]:
        """Those that are usable for ``model``."""

    def failure(self, model: str) -> OllamaError | None:
        """Why none is usable; None as long as it is worth a wait."""


class Waiter:
    """A generation that wants a slot of an Ollama that has ``model`` and is not one of ``tried``.

    ``prefers`` puts those that have a free slot in order, the best one first.
    """

    def __init__(self, model: str, prefers: Callable[[list[Upstream]], Iterable[Upstream]],
                 tried: Collection[Upstream] = (), since: float | None = None):
        self.model, self.prefers, self.tried = model, prefers, frozenset(tried)
        self.since = time.monotonic() if since is None else since
        self.woken = threading.Event()
        self.slot: Slot | None = None
        self.error: OllamaError | None = None
        self.before: int | None = None  # how many wait before it, as last told
        self.kind = model, self.tried  # what those have in common who may go to the same Ollamas


class Queue:
    """At most ``limit`` wait in order of arrival for free slots of the Ollamas, none longer than ``wait_seconds``.

    Slots are shared with other processes, whose queues are heard too: on the whole machine the oldest one goes first.
    """

    def __init__(self, choice: Choice, limit: int, wait_seconds: float):
        self._choice, self.limit, self._wait_seconds = choice, limit, wait_seconds
        self._lock = threading.Lock()
        self._waiting: list[Waiter] = []  # in order of arrival
        self._kinds: Counter[tuple[str, frozenset[Upstream]]] = Counter()  # of those
        self._told: set[Upstream] = set()  # the Ollamas for which others know since when we wait
        self._running: dict[Slot, None] = {}
        self._mean_seconds: float | None = None  # of a held slot, recent ones weigh most

    def __repr__(self) -> str:
        return f"<Queue: {self.running} running, {self.waiting} of {self.limit} waiting>"

    @property
    def running(self) -> int:
        """Slots that this process holds."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """How many of this process wait for a slot."""
        return len(self._waiting)

    def take(self, waiter: Waiter, cancellation: Cancellation, waits: Callable[[], object] = lambda: None,
             seconds: float | None = None) -> Slot:
        """Take a slot for ``waiter``, after a wait of at most ``seconds``; give it back with ``give_back``.

        ``waits`` is called when there is a wait. Raises QueueFull, QueueTimeout or Cancelled, and OllamaError when no
        Ollama is usable.
        """
        with self._lock:
            if (slot := self._at_once(waiter)) is not None:
                return slot
            if len(self._waiting) >= self.limit and not waiter.tried:
                raise QueueFull(self.limit, self.retry_after(waiter.model))
            insort(self._waiting, waiter, key=_since)
            self._kinds[waiter.kind] += 1
        waits()
        seconds = self._wait_seconds if seconds is None else seconds
        try:
            with cancellation.interrupts(waiter.woken.set):
                return self._wait(waiter, cancellation, time.monotonic() + seconds, seconds)
        except BaseException:
            with self._lock:
                self._leave(waiter)
            if waiter.slot is not None:  # it was given one at the last moment
                self.give_back(waiter.slot)
            raise

    def give_back(self, slot: Slot) -> None:
        """Give ``slot`` to whoever has waited longest for it, here or in another process."""
        with self._lock:
            seconds = time.monotonic() - slot.at
            mean = self._mean_seconds
            self._mean_seconds = seconds if mean is None else 0.8 * mean + 0.2 * seconds
            del self._running[slot]
            upstream = slot.upstream
            heir = self._heir(upstream)
            if heir is not None and not upstream.slots.older_elsewhere(heir.since):
                self._give(heir, Slot(upstream, slot.number, time.monotonic()))
            else:
                upstream.slots.give_back(slot.number)
                self._wake_first()

    def look(self) -> None:
        """Serve those who wait, after what is usable may have changed."""
        if self._waiting:
            with self._lock:
                self._serve()
                self._wake_first()

    def told(self, waiter: Waiter) -> Wait:
        """What a waiting caller is told: its place, which only falls, and a guess from the recent speed."""
        with self._lock:
            before = bisect_left(self._waiting, waiter.since, key=_since)
            waiter.before = before if waiter.before is None else min(before, waiter.before)
            mean = self._mean_seconds
            seconds = None if mean is None else max(1.0, mean * (waiter.before + 1) / self._slots(waiter.model))
            return Wait(waiter.before, seconds)

    def retry_after(self, model: str) -> int:
        """Whole seconds after which a place should be free, from the recent speed."""
        mean = self._mean_seconds
        if mean is None:
            now = time.monotonic()
            mean = now - min((slot.at for slot in self._running), default=now)
        return min(3600, max(1, math.ceil(mean * (self.waiting + 1) / self._slots(model))))

    def _wait(self, waiter: Waiter, cancellation: Cancellation, deadline: float, seconds: float) -> Slot:
        while True:
            with self._lock:
                first = bool(self._waiting) and self._waiting[0] is waiter
                if first:
                    self._serve()
                pause = LOOK_EVERY * random.uniform(0.5, 1.5) if first and self._contested() else math.inf
            if waiter.slot is not None:
                return waiter.slot
            if waiter.error is not None:
                raise waiter.error
            if cancellation.requested:
                raise Cancelled
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise QueueTimeout(seconds, self.retry_after(waiter.model))
            # Other processes cannot wake us. The jitter keeps their looks apart.
            waiter.woken.wait(min(remaining, pause))
            waiter.woken.clear()

    def _at_once(self, waiter: Waiter) -> Slot | None:
        """A free slot for one who comes, unless those who wait want it; raises why no Ollama is usable."""
        if waiter.kind in self._kinds:
            return None
        if not (hosts := self._usable(waiter)) and (error := self._hopeless(waiter)) is not None:
            raise error
        if self._waiting:
            wanted = {upstream for kind in self._kinds for upstream in self._choice.hosts(kind[0])}
            hosts = [upstream for upstream in hosts if upstream not in wanted]
        return self._free_slot(waiter, hosts)

    def _serve(self) -> None:
        """Give the slots that are free to those who wait, and tell the other processes who still does."""
        stuck: set[tuple[str, frozenset[Upstream]]] = set()
        tell: dict[Upstream, float] = {}
        for waiter in self._waiting.copy():
            if waiter.kind in stuck:
                continue
            hosts = self._usable(waiter)
            if (slot := self._free_slot(waiter, hosts)) is not None:
                self._give(waiter, slot)
            elif not hosts and (error := self._hopeless(waiter)) is not None:
                waiter.error = error
                self._leave(waiter)
                waiter.woken.set()
            else:
                stuck.add(waiter.kind)
                for upstream in hosts:
                    tell.setdefault(upstream, waiter.since)
            if len(stuck) == len(self._kinds):
                break
        self._tell(tell)

    def _tell(self, since: dict[Upstream, float]) -> None:
        for upstream in self._told | since.keys():
            upstream.slots.tell(since.get(upstream))
        self._told = set(since)

    def _free_slot(self, waiter: Waiter, hosts: Sequence[Upstream]) -> Slot | None:
        free = [upstream for upstream in hosts if upstream.slots.running < upstream.slots.number]
        for upstream in waiter.prefers(free) if len(free) > 1 else free:
            if (number := upstream.slots.take(waiter.since)) is not None:
                slot = Slot(upstream, number, time.monotonic())
                self._running[slot] = None
                return slot
        return None

    def _heir(self, upstream: Upstream) -> Waiter | None:
        """Who has waited longest here of those who may go to ``upstream``."""
        unfit: set[tuple[str, frozenset[Upstream]]] = set()
        for waiter in self._waiting:
            if waiter.kind not in unfit:
                if upstream in self._usable(waiter):
                    return waiter
                unfit.add(waiter.kind)
                if len(unfit) == len(self._kinds):
                    break
        return None

    def _give(self, waiter: Waiter, slot: Slot) -> None:
        self._running[slot] = None
        waiter.slot = slot
        self._leave(waiter)
        waiter.woken.set()

    def _leave(self, waiter: Waiter) -> None:
        """Take ``waiter`` out of the queue, if it is still in it."""
        place = bisect_left(self._waiting, waiter.since, key=_since)
        while place < len(self._waiting) and self._waiting[place].since == waiter.since:
            if self._waiting[place] is waiter:
                del self._waiting[place]
                self._kinds[waiter.kind] -= 1
                if not self._kinds[waiter.kind]:
                    del self._kinds[waiter.kind]
                if not self._waiting:
                    self._tell({})
                elif place == 0:
                    self._wake_first()
                return
            place += 1

    def _wake_first(self) -> None:
        """Have the first one look, if there is something to look for."""
        if self._waiting and self._contested():
            self._waiting[0].woken.set()

    def _contested(self) -> bool:
        """Whether other processes may hold slots that those who wait here could have."""
        return any(upstream.slots.running < upstream.slots.number
                   for kind in self._kinds for upstream in self._choice.hosts(kind[0]))

    def _usable(self, waiter: Waiter) -> Sequence[Upstream]:
        hosts = self._choice.hosts(waiter.model)
        return [upstream for upstream in hosts if upstream not in waiter.tried] if waiter.tried else hosts

    def _hopeless(self, waiter: Waiter) -> OllamaError | None:
        """Why no Ollama will be usable for ``waiter``, None when it is worth a wait."""
        return OllamaUnavailable() if waiter.tried else self._choice.failure(waiter.model)

    def _slots(self, model: str) -> int:
        return max(1, sum(upstream.slots.number for upstream in self._choice.hosts(model)))


def _since(waiter: Waiter) -> float:
    return waiter.since
