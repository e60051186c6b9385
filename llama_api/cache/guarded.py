"""The guard around a shared store: no caller waits for a store that is down or busy."""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any

from .sqlite import SqliteStore
from .store import Claim, Found, Lease, LeasingStore, Renewal, Store, StoreError

ADMISSION = 0.03  # seconds that a look-up waits for access to the store
PATIENCE = 0.25  # seconds that other operations wait; if they fail, an answer may be generated twice or lost
PROBE_EVERY = 1.0  # seconds between two checks of a store that is down
FIRST_PROBE = 0.25  # seconds to the first check, as most failures are short
WARN_EVERY = 60.0  # seconds between two warnings
logger = logging.getLogger("llama_api.store")


def open_store(url: str, max_entries: int, max_bytes: int) -> Store:
    """The store at ``sqlite:///path`` or ``redis[s]://[:password@]host:port/db``. Raises StoreError for other URLs."""
    if url.startswith("sqlite:///") and url != "sqlite:///":
        return SqliteStore(url.removeprefix("sqlite:///"), max_entries, max_bytes)
    if url.startswith(("redis://", "rediss://")):
        # Imported here, as it takes a fifth of the time to start and 8 MB, which most workers need not spend.
        from .redis import RedisStore
        return RedisStore(url, max_entries, max_bytes)
    raise StoreError("a shared store is sqlite:///PATH or redis://HOST:PORT/DB")


class GuardedStore:
    """A Store that never raises and hardly ever delays: while it is down, its operations return at once.

    An operation returns None while the store is down or too busy. The first failure marks it as down; a thread then
    checks soon, and after that every second, whether it is back. Each failure is reported to ``on_error``. A purge
    requested meanwhile is done before the store is used again.
    """

    def __init__(self, store: Store, on_error: Callable[[StoreError], None] = lambda error: None,
                 clock: Callable[[], float] = time.monotonic, probe_every: float = PROBE_EVERY):
        self.name = store.name
        self._store, self._on_error, self._clock, self._probe_every = store, on_error, clock, probe_every
        self._leasing = store if isinstance(store, LeasingStore) else None
        self._warned: float | None = None
        self._state = threading.Lock()
        self._inside = threading.Semaphore(store.concurrency)
        self._closing = threading.Event()
        self._down_since: float | None = None
        self._purge = False
        self._skipped = 0

    @property
    def available(self) -> bool:
        """Whether operations reach the store."""
        return self._down_since is None

    @property
    def away_for(self) -> float:
        """Seconds for which no operation has reached the store; 0 while they do."""
        since = self._down_since
        return 0.0 if since is None else self._clock() - since

    @property
    def leases(self) -> bool:
        """Whether it is a store for many hosts, which counts leases."""
        return self._leasing is not None

    def get(self, key: str) -> Found | None:
        return self._call(self._store.get, key, wait=ADMISSION)

    def get_many(self, keys: Sequence[str]) -> list[Found] | None:
        return self._call(self._store.get_many, keys, wait=ADMISSION)

    def set(self, key: str, value: bytes, epoch: str) -> int | None:
        return self._call(self._store.set, key, value, epoch)

    def touch(self, keys: Iterable[str]) -> bool:
        """As in Store; returns whether it was done."""
        def touch() -> bool:
            self._store.touch(keys)
            return True

        return self._call(touch) is True

    def delete(self, key: str) -> None:
        self._call(self._store.delete, key)

    def clear(self) -> str | None:
        """As in Store; if the store is down, as soon as it is back."""
        with self._state:
            self._purge, down = True, not self.available
        if not down:
            try:
                return self._clear()
            except StoreError as error:
                self._fail(error)
        return None

    def size(self) -> tuple[int, int] | None:
        return self._call(self._store.size)

    def claim(self, key: str, token: str, ttl: float) -> Claim | None:
        return self._call(self._store.claim, key, token, ttl)

    def peek(self, claim: Claim, follower: str) -> bytes | None:
        return self._call(self._store.peek, claim, follower)

    def settle(self, claim: Claim, outcome: bytes, linger: float) -> None:
        self._call(self._store.settle, claim, outcome, linger)

    def release(self, claim: Claim) -> None:
        self._call(self._store.release, claim)

    def renew(self, claims: Sequence[Claim], leases: Sequence[Lease], ttl: float) -> Renewal | None:
        return self._call(self._store.renew, claims, leases, ttl)

    def lease(self, lease: Lease, waited: float, limit: int, ttl: float) -> bool | None:
        return self._call(self._leasing.lease, lease, waited, limit, ttl) if self._leasing else None

    def unlease(self, lease: Lease) -> None:
        if self._leasing:
            self._call(self._leasing.unlease, lease)

    def close(self) -> None:
        self._closing.set()
        with suppress(StoreError):
            self._store.close()

    def _call(self, operation: Callable[..., Any], *args: Any, wait: float = PATIENCE) -> Any:
        if not self.available or not self._inside.acquire(timeout=wait):
            return self._skip()
        try:
            if not self.available:  # it went down while we waited for access
                return self._skip()
            return operation(*args)
        except StoreError as error:
            self._fail(error)
            return None
        finally:
            self._inside.release()

    def _skip(self) -> None:
        with self._state:
            self._skipped += 1

    def _clear(self) -> str:
        self._purge = False
        try:
            return self._store.clear()
        except StoreError:
            self._purge = True
            raise

    def _fail(self, error: StoreError) -> None:
        self._on_error(error)
        with self._state:
            first = self.available
            if first:
                self._down_since = self._clock()
        if first:
            self._warn(error)
            try:
                threading.Thread(target=self._probe, name="store-probe", daemon=True).start()
            except RuntimeError:  # no thread can be started: the next operation checks
                self._down_since = None

    def _probe(self) -> None:
        """Check until the store is back."""
        wait = min(FIRST_PROBE, self._probe_every)
        while not self._closing.wait(wait):
            wait = self._probe_every
            try:
                self._store.ping()
                while not self.available:
                    if self._purge:
                        self._clear()
                    with self._state:
                        if not self._purge:
                            self._down_since = None
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
