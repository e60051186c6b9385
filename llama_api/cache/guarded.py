"""The stores that processes share, behind the in-process cache: answers, and claims on the making of answers.

Answers are opaque bytes under a digest; a store keeps the most recently set or touched within both of its bounds.
A claim is one process's word that it is making the answer to a key; it expires, so that a killed holder frees those
who wait. Nothing that is read is unpickled or executed.

SQLite (one host), one file in WAL mode with ``synchronous = NORMAL``; a commit survives the process, not the power:
  entries  key, used (a tick: the higher, the later; the lowest is evicted first), length and crc of the answer
  answers  the bytes, apart from what changes with each use
  totals   one row: entries, bytes, the last tick; kept by the transaction that changes the entries
  claims   key, token, since, ttl (of the monotonic clock, which all processes of a host share), outcome, wanted
A file that is damaged, or that is not ours or of an older layout, is renamed to ``<name>.corrupt-<n>`` or
``<name>.foreign-<n>`` and a fresh one is made; one of a newer layout is left alone and not used. Opening and renaming
happen under ``<name>.lock``. A deleted or replaced file is noticed by its inode.

Redis (many hosts), every key begins with ``llama_api:1:``, 1 being the version of this layout:
  entry:<key>  the value, with a TTL (30 days) that set and touch renew
  used         sorted set of keys by their last use, counted up; what is not in here is not found
  sizes        hash of each key's counted bytes, and their sum in the field ``bytes``
  claim:<key>  hash of token and, once settled, outcome; its TTL is the claim's
  waits:<key>  the token somebody waits for, for two seconds
So the server's clock is the only one, and the server is left with nothing once nobody uses it. It may also take
entries away by itself. By TTL it takes the least recently used first, which every set looks at; by ``maxmemory`` it
takes any: such a key is a miss, and is taken off the books when it is set, touched or becomes the oldest. Should it
take one of the two books, the next set drops the other: the cache starts empty, and the values left over expire.
"""

import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from .redis import RedisStore
from .sqlite import SqliteStore
from .store import OVERHEAD, Claim, Store, StoreError

__all__ = ["OVERHEAD", "Claim", "GuardedStore", "RedisStore", "SqliteStore", "Store", "StoreError", "open_store"]

ADMISSION = 0.03  # seconds to wait for a place inside the store
PROBE_EVERY = 1.0  # seconds between two looks at a store that is down
WARN_EVERY = 60.0  # seconds between two warnings
logger = logging.getLogger("llama_api.store")


def open_store(url: str, max_entries: int, max_bytes: int) -> SqliteStore | RedisStore:
    """The store at ``sqlite:///path`` or ``redis[s]://[:password@]host:port/db``. Raises StoreError for no such URL."""
    if url.startswith("sqlite:///") and url != "sqlite:///":
        return SqliteStore(url.removeprefix("sqlite:///"), max_entries, max_bytes)
    if url.startswith(("redis://", "rediss://")):
        return RedisStore(url, max_entries, max_bytes)
    raise StoreError("a shared store is sqlite:///PATH or redis://HOST:PORT/DB")


class GuardedStore:
    """A Store that never raises and hardly ever delays: while it is down, it knows nothing and says so at once.

    The first failure puts it down; a thread then looks every second whether it is back. Each failure is told to
    ``on_error``. A purge asked for meanwhile is done before it is used again.
    """

    def __init__(self, store: Store, on_error: Callable[[StoreError], None] = lambda error: None,
                 clock: Callable[[], float] = time.monotonic, probe_every: float = PROBE_EVERY):
        self.name = store.name
        self._store, self._on_error, self._clock, self._probe_every = store, on_error, clock, probe_every
        self._warned: float | None = None
        self._reset()
        _guards.add(self)

    @property
    def available(self) -> bool:
        """Whether operations reach the store."""
        return not self._down

    def get(self, key: str) -> bytes | None:
        return self._call(None, self._store.get, key)

    def set(self, key: str, value: bytes) -> int:
        return self._call(0, self._store.set, key, value)

    def touch(self, keys: Iterable[str]) -> None:
        self._call(None, self._store.touch, keys)

    def delete(self, key: str) -> None:
        self._call(None, self._store.delete, key)

    def clear(self) -> None:
        """As in Store, if need be as soon as the store is back."""
        with self._state:
            self._purge, down = True, self._down
        if not down:
            try:
                self._clear()
            except StoreError as error:
                self._fail(error)

    def size(self) -> tuple[int, int] | None:
        """As in Store; None when it cannot be told."""
        return self._call(None, self._store.size)

    def claim(self, key: str, token: str, ttl: float) -> Claim | None:
        """As in Store; also None, go on alone, when it cannot be told."""
        return self._call(None, self._store.claim, key, token, ttl)

    def renew(self, key: str, token: str, ttl: float) -> bool:
        """As in Store; True, nothing known against it, when it cannot be told."""
        return self._call(True, self._store.renew, key, token, ttl)

    def settle(self, key: str, token: str, outcome: bytes, linger: float) -> None:
        self._call(None, self._store.settle, key, token, outcome, linger)

    def release(self, key: str, token: str) -> None:
        self._call(None, self._store.release, key, token)

    def peek(self, key: str, token: str) -> Claim | None:
        return self._call(None, self._store.peek, key, token)

    def wanted(self, key: str, token: str) -> bool:
        return self._call(False, self._store.wanted, key, token)

    def close(self) -> None:
        self._closing.set()
        with suppress(StoreError):
            self._store.close()

    def _reset(self) -> None:
        """As new: at the start, and in a forked child, which has none of its parent's threads."""
        self._state = threading.Lock()
        self._inside = threading.Semaphore(self._store.concurrency)
        self._closing = threading.Event()
        self._down = self._purge = False
        self._skipped = 0

    def _call(self, unknown: Any, operation: Callable[..., Any], *args: Any) -> Any:
        if self._down or not self._inside.acquire(timeout=ADMISSION):
            return self._skip(unknown)
        try:
            if self._down:  # it went down while we waited to get in
                return self._skip(unknown)
            return operation(*args)
        except StoreError as error:
            self._fail(error)
            return unknown
        finally:
            self._inside.release()

    def _skip(self, unknown: Any) -> Any:
        with self._state:
            self._skipped += 1
        return unknown

    def _clear(self) -> None:
        self._purge = False
        try:
            self._store.clear()
        except StoreError:
            self._purge = True
            raise

    def _fail(self, error: StoreError) -> None:
        self._on_error(error)
        with self._state:
            first, self._down = not self._down, True
        if first:
            self._warn(error)
            try:
                threading.Thread(target=self._probe, name="store-probe", daemon=True).start()
            except RuntimeError:  # no thread to be had: then the next operation looks
                self._down = False

    def _probe(self) -> None:
        """Look until the store is back."""
        while not self._closing.wait(self._probe_every):
            try:
                self._store.ping()
                while self._down:
                    if self._purge:
                        self._clear()
                    with self._state:
                        self._down = self._purge
            except StoreError as error:
                self._warn(error)
            else:
                logger.info("the shared store %s is back", self.name)
                return

    def _warn(self, error: StoreError) -> None:
        now = self._clock()
        if self._warned is not None and now - self._warned < WARN_EVERY:
            return
        with self._state:
            self._warned, skipped, self._skipped = now, self._skipped, 0
        logger.warning("the shared store %s cannot be used: %s; each process goes on with its own cache"
                       " (%d operations skipped so far)", self.name, error, skipped)


_guards: "weakref.WeakSet[GuardedStore]" = weakref.WeakSet()


def _after_fork() -> None:
    for guard in list(_guards):
        guard._reset()


os.register_at_fork(after_in_child=_after_fork)
