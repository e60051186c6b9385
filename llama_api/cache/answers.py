"""The cache of answers: the in-process LRU and, behind it, the shared store."""

import time
from collections.abc import Callable, Sequence

import orjson

from ..answer import Answer
from ..waiting import SingleFlight
from .epochs import Epochs
from .guarded import GuardedStore
from .renewer import Renewer
from .lru import LRUCache
from .store import OUTDATED, Found

BATCH = 100  # keys per look-up in the store; their vectors take a few megabytes at most
TRUST_SECONDS = 1.0  # how long an entry of the in-process LRU is served without asking the shared store


class Entry:
    """An answer in the in-process LRU. ``born`` and ``checked`` (by the shared store) are on the monotonic clock."""

    __slots__ = ("answer", "born", "checked")

    def __init__(self, answer: Answer, born: float, checked: float):
        self.answer, self.born, self.checked = answer, born, checked

    def __sizeof__(self) -> int:
        return self.answer.weight


class AnswerCache:
    """The in-process LRU and, behind it, a shared store or None.

    An entry of the LRU is trusted for a second and then checked in the store, so that answers and renewals of one
    worker reach the others within a second. While the store is down or busy, the LRU is used alone.

    A purge begins a new ``epoch``, here and elsewhere: answers begun in an earlier one are not stored, the LRU is
    emptied, and the actions of ``when_purged`` are called.
    """

    def __init__(self, front: LRUCache, store: GuardedStore | None = None, ttl: float = 0, stale_seconds: float = 0,
                 clock: Callable[[], float] = time.monotonic, wall_clock: Callable[[], float] = time.time,
                 on_write: Callable[["AnswerCache"], None] = lambda cache: None):
        self.front, self.store, self._on_write = front, store, on_write
        self._on_purge: list[Callable[[], None]] = []
        self.enabled = front.max_entries > 0
        self.epochs = Epochs(self._forget)
        self.renewer = Renewer(store, self.epochs) if store is not None else None
        self._timeout = ttl + stale_seconds if ttl else 0
        self._clock, self._wall_clock = clock, wall_clock
        self._asking = SingleFlight()  # concurrent look-ups of one key are one look-up in the store
        self._store_evictions = 0

    @property
    def epoch(self) -> int:
        """The current epoch, to which anything begun now belongs."""
        return self.epochs.number

    def get(self, key: str) -> Entry | None:
        """The entry of ``key``, fresh or stale, or None."""
        entry: Entry | None = self.front.get(key)
        if self.renewer is None:
            return entry
        self.renewer.start()
        now = self._clock()
        if entry is None or now - entry.checked >= TRUST_SECONDS:
            entry = self._ask([key], {} if entry is None else {key: entry}, now).get(key)
        if entry is not None:
            self.renewer.served(key)
        return entry

    def get_many(self, keys: Sequence[str], anew: bool = False) -> dict[str, Entry]:
        """The entries of ``keys`` that exist, fresh or stale, looked up in the store in batches.

        With ``anew`` all of them are looked up there.
        """
        known: dict[str, Entry] = {key: entry for key in keys if (entry := self.front.get(key)) is not None}
        if self.renewer is None:
            return known
        self.renewer.start()
        now = self._clock()
        asked = [key for key in keys if anew or key not in known or now - known[key].checked >= TRUST_SECONDS]
        for start in range(0, len(asked), BATCH):
            batch = asked[start:start + BATCH]
            known |= self._ask(batch, {key: known.pop(key) for key in batch if key in known}, now)
        for key in known:
            self.renewer.served(key)
        return known

    def set(self, key: str, answer: Answer, epoch: int) -> bool:
        """Store ``answer``, begun in ``epoch``; False when that epoch is over or the answer is too large."""
        now = self._clock()
        entry = Entry(answer, now, now)
        if not self.front.takes(entry):
            self._delete(key)  # the previous one is outdated
            return False
        if not self._share(key, answer, epoch):
            return False
        with self.epochs.lock:
            if epoch != self.epochs.number:
                return False
            self.front.set(key, entry, self._timeout)
        self._on_write(self)
        return True

    def when_purged(self, action: Callable[[], None]) -> None:
        """Call ``action`` at each purge, here or elsewhere."""
        self._on_purge.append(action)

    def watch(self) -> None:
        """Watch for purges elsewhere, even if this process never looks up an answer."""
        if self.renewer is not None:
            self.renewer.start()

    def clear(self) -> None:
        """Remove every answer, for all workers and hosts within TRUST_SECONDS."""
        self.epochs.begin(self.store.clear() if self.store is not None else None)
        self._on_write(self)

    def size(self) -> tuple[int, int]:
        """Entries and bytes of the store if it answers, else of the LRU."""
        shared = self.store.size() if self.store is not None else None
        return shared if shared is not None else (len(self.front), self.front.bytes)

    @property
    def evictions(self) -> int:
        """The number of answers that this process has evicted."""
        return self.front.evictions if self.store is None else self._store_evictions

    def close(self) -> None:
        """Close the store; what this process holds there expires."""
        if self.renewer is not None and self.store is not None:
            self.renewer.stop()
            self.store.close()

    def _forget(self) -> None:
        self.front.clear()
        for action in self._on_purge:
            action()

    def _delete(self, key: str) -> None:
        self.front.delete(key)
        if self.store is not None:
            self.store.delete(key)

    def _share(self, key: str, answer: Answer, epoch: int) -> bool:
        """Put ``answer`` into the store; False when there was a purge since ``epoch``."""
        if self.store is None or self.renewer is None:
            return True
        with self.epochs.lock:
            current, name = epoch == self.epochs.number, self.epochs.name
        if not current:
            return False
        self.renewer.report_use()  # else it would evict entries served since the last report
        evicted = self.store.set(key, answer.to_bytes(), name)
        if evicted == OUTDATED:  # there was a purge elsewhere that we had not seen
            if (found := self.store.get(key)) is not None:
                self.epochs.saw(found.epoch, epoch)
            return False
        self._store_evictions += evicted or 0
        return True

    def _ask(self, keys: Sequence[str], known: dict[str, Entry], now: float) -> dict[str, Entry]:
        """The entries of ``keys`` in the store, where the LRU has ``known``."""
        found: dict[str, Entry] = self._asking.call("".join(keys), lambda: self._look_up(keys, known, now))
        return found

    def _look_up(self, keys: Sequence[str], known: dict[str, Entry], now: float) -> dict[str, Entry]:
        assert self.store is not None
        since = self.epochs.number
        found = self.store.get_many(keys)
        if found is None:  # the store is down or busy
            return known
        self.epochs.saw(found[0].epoch, since)
        return {key: entry for key, one in zip(keys, found, strict=True)
                if (entry := self._adopt(key, one, now)) is not None}

    def _adopt(self, key: str, found: Found, now: float) -> Entry | None:
        """Put the store's value of ``key`` into the LRU."""
        adopted = self._read(found.value, now) if found.value is not None else None
        with self.epochs.lock:
            if adopted is None or found.epoch != self.epochs.name:
                self.front.delete(key)
                return None
            self.front.set(key, adopted, self._timeout and self._timeout - (now - adopted.born))
        return adopted

    def _read(self, stored: bytes, now: float) -> Entry | None:
        """The entry in the store's value; None if it is too old, or of another version, which may still need it."""
        try:
            answer = Answer.from_json(orjson.loads(stored))
        except ValueError:
            return None
        born = now - max(0.0, self._wall_clock() - answer.created)
        return None if self._timeout and now - born >= self._timeout else Entry(answer, born, now)
