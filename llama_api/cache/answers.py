"""The cache of answers: the in-process LRU and, behind it, the store that processes share."""

import time
from collections.abc import Callable
from typing import Any

import orjson

from ..answer import Answer
from ..waiting import SingleFlight
from .lru import LRUCache

TRUST_SECONDS = 1.0  # how long an entry of the in-process LRU is served without asking the shared store


class Entry:
    """An answer in the in-process LRU. ``born`` and ``checked`` (by the shared store) are on the monotonic clock."""

    __slots__ = ("answer", "born", "checked")

    def __init__(self, answer: Answer, born: float, checked: float):
        self.answer, self.born, self.checked = answer, born, checked

    def __sizeof__(self) -> int:
        return self.answer.weight


class AnswerCache:
    """The in-process LRU and, behind it, a shared store (see stores.py) or None.

    An entry of the LRU is trusted for a second, then asked of the store again, so that a purge, a renewal or an answer
    of one worker is everywhere within a second. A store that is down leaves the LRU to go on alone.
    """

    def __init__(self, front: LRUCache, store: Any = None, ttl: float = 0, stale_seconds: float = 0,
                 clock: Callable[[], float] = time.monotonic, wall_clock: Callable[[], float] = time.time,
                 on_write: Callable[["AnswerCache"], None] = lambda cache: None):
        self.front, self.store, self._on_write = front, store, on_write
        self.enabled = front.max_entries > 0
        self._timeout = ttl + stale_seconds if ttl else 0
        self._clock, self._wall_clock = clock, wall_clock
        self._touched: set[str] = set()
        self._asking = SingleFlight()  # a storm for one key is one look into the store
        self._store_evictions = 0

    def get(self, key: str) -> Entry | None:
        """The entry of ``key``, fresh or stale."""
        entry: Entry | None = self.front.get(key)
        if self.store is None:
            return entry
        now = self._clock()
        if entry is not None and now - entry.checked < TRUST_SECONDS:
            self._touched.add(key)
            return entry
        found: Entry | None = self._asking.call(key, lambda: self._ask(key, entry, now))
        return found

    def set(self, key: str, answer: Answer) -> bool:
        """Keep ``answer``; False when it is too large."""
        now = self._clock()
        if not self.front.set(key, Entry(answer, now, now), self._timeout):
            if self.store is not None:
                self.store.delete(key)  # the one before it is outdated
            return False
        if self.store is not None:
            self.report_use()  # else it would evict what was served since the last report
            self._store_evictions += self.store.set(key, answer.to_bytes())
        self._on_write(self)
        return True

    def clear(self) -> None:
        """Remove every answer, for every worker and host within TRUST_SECONDS."""
        if self.store is not None:
            self.store.clear()
        self.front.clear()
        self._on_write(self)

    def size(self) -> tuple[int, int]:
        """Entries and bytes: the store's when there is one and it answers, else those of the LRU."""
        shared = self.store.size() if self.store is not None else None
        return shared if shared is not None else (len(self.front), self.front.bytes)

    @property
    def evictions(self) -> int:
        """How many answers this process has evicted to keep within the bounds."""
        return self.front.evictions if self.store is None else self._store_evictions

    def report_use(self) -> None:
        """Tell the store which entries the LRU has served since the last call, so that both evict by the same use."""
        touched, self._touched = self._touched, set()
        if touched and self.store is not None:
            self.store.touch(list(touched))

    def _ask(self, key: str, entry: Entry | None, now: float) -> Entry | None:
        """What the store has for ``key``, where the LRU has ``entry``."""
        stored = self.store.get(key)
        if stored is not None:
            return self._adopt(key, stored, now)
        if self.store.available:
            self.front.delete(key)
            return None
        return entry

    def _adopt(self, key: str, stored: bytes, now: float) -> Entry | None:
        try:
            answer = Answer.from_json(orjson.loads(stored))
        except (ValueError, TypeError):
            self.store.delete(key)
            return None
        entry = Entry(answer, now - max(0.0, self._wall_clock() - answer.created), now)
        if self._timeout and now - entry.born >= self._timeout:
            return None
        self.front.set(key, entry, self._timeout and self._timeout - (now - entry.born))
        return entry
