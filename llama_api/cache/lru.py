"""An exact LRU in the process, as a flask-caching backend."""

import math
import sys
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from flask_caching.backends.base import BaseCache

from .. import native

OVERHEAD = 768  # bytes of an entry in addition to its text, measured by benchmarks/lru.py
_NOTHING = object()


class LRUCache(BaseCache):
    """A flask-caching backend that evicts exactly the least recently used entry (served or written).

    Bounded by both ``max_entries`` and ``max_bytes``; every operation is O(1) and thread-safe; values are kept as they
    are, never pickled. ``timeout`` is in seconds, 0 is forever. ``sys.getsizeof`` weighs a value.
    """

    def __init__(self, max_entries: int = 1000, max_bytes: int = 1 << 26, default_timeout: float = 0,
                 ignore_delete_many_errors: bool = True, clock: Callable[[], float] = time.monotonic):
        super().__init__(ignore_delete_many_errors=ignore_delete_many_errors)
        self.default_timeout = default_timeout  # type: ignore[assignment]
        self.max_entries, self.max_bytes = max_entries, max_bytes
        self.bytes = self.evictions = 0
        self._clock = clock
        # A native lock, twice as fast as gevent's: no greenlet switch happens while it is held.
        self._lock = native.allocate_lock()
        # An OrderedDict, because a dict that often pops its oldest item scans the holes left by them. Sizes and
        # expiries are kept apart, as a hit does not need them: at 10⁶ entries each further object is a cache miss.
        self._values: OrderedDict[str, Any] = OrderedDict()
        self._sizes: dict[str, int] = {}
        self._expiries: dict[str, float] = {}

    @classmethod
    def factory(cls, app: Any, config: dict[str, Any], args: list[Any], kwargs: dict[str, Any]) -> "LRUCache":
        """Make the backend for flask-caching from CACHE_OPTIONS, the arguments, and CACHE_THRESHOLD, the entries."""
        return cls(*args, **{"max_entries": config["CACHE_THRESHOLD"], **kwargs})

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: str) -> Any:
        """The value of ``key``, which becomes the most recently used; None when missing or expired."""
        with self._lock:
            value = self._values.get(key, _NOTHING)
            if value is not _NOTHING:
                if not (self._expiries and self._expired(key)):
                    self._values.move_to_end(key)
                    return value
                self._drop(key)
            return None

    def takes(self, value: Any) -> bool:
        """Whether ``value`` may be stored: it weighs at most an eighth of ``max_bytes``."""
        return self._takes(OVERHEAD + sys.getsizeof(value))

    def set(self, key: str, value: Any, timeout: float | None = None) -> bool:  # type: ignore[override]
        """Store ``value``; False when it weighs too much, and then nothing remains stored."""
        size = OVERHEAD + sys.getsizeof(value)
        with self._lock:
            return self._put(key, value, size, timeout)

    def add(self, key: str, value: Any, timeout: float | None = None) -> bool:  # type: ignore[override]
        """Store ``value`` unless ``key`` exists."""
        size = OVERHEAD + sys.getsizeof(value)
        with self._lock:
            return not self._has(key) and self._put(key, value, size, timeout)

    def has(self, key: str) -> bool:
        """Whether ``key`` exists, without changing its recency."""
        with self._lock:
            return self._has(key)

    def delete(self, key: str) -> bool:
        """Remove ``key``; False when it did not exist."""
        with self._lock:
            return self._drop(key)

    def clear(self) -> bool:
        """Remove everything, but keep the count of evictions."""
        with self._lock:
            for part in (self._values, self._sizes, self._expiries):
                part.clear()
            self.bytes = 0
        return True

    def _takes(self, size: int) -> bool:
        return size <= self.max_bytes // 8 and self.max_entries > 0

    def _has(self, key: str) -> bool:
        return key in self._values and not self._expired(key)

    def _expired(self, key: str) -> bool:
        return self._clock() >= self._expiries.get(key, math.inf)

    def _put(self, key: str, value: Any, size: int, timeout: float | None) -> bool:
        self._drop(key)
        if not self._takes(size):
            return False
        if seconds := self.default_timeout if timeout is None else timeout:
            self._expiries[key] = self._clock() + seconds
        self._values[key] = value
        self._sizes[key] = size
        self.bytes += size
        while len(self._values) > self.max_entries or self.bytes > self.max_bytes:
            self._drop(next(iter(self._values)))
            self.evictions += 1
        return True

    def _drop(self, key: str) -> bool:
        if key not in self._values:
            return False
        del self._values[key]
        self.bytes -= self._sizes.pop(key)
        self._expiries.pop(key, None)
        return True
