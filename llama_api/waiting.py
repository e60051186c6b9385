"""Helpers for waiting: progress reports, time limits, cancellation, and calls shared by their callers."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

from .background import BackgroundThread
from .trace_context import TraceContext

logger = logging.getLogger(__name__)

WATCH_TICK = 0.05  # seconds by which a time limit may be late


class Cancelled(Exception):
    """No caller waits for this generation any more."""


class Wait(NamedTuple):
    """The report to a waiting caller: the number of waiters before it, and the estimated seconds, where known."""

    before: int | None = None
    seconds: float | None = None


@dataclass(slots=True)
class Progress:
    """The progress of a generation, updated by its producer. Times are on the monotonic clock.

    ``state`` is waiting (for a slot), loading (the model) or writing; ``host`` is the Ollama that took it, ``slot_at``
    when. ``wait`` returns the report to a waiting caller; the queue sets its own. ``trace`` is the span of
    the request that began it.
    """

    state: str = "waiting"
    host: str | None = None
    slot_at: float | None = None
    first_piece_at: float | None = None
    wait: Callable[[], Wait] = Wait
    trace: TraceContext | None = None


class Watchdog:
    """Runs actions when their time limits pass, with one thread for all of them."""

    def __init__(self) -> None:
        self._limits: dict[object, tuple[float, Callable[[], None]]] = {}
        self._busy = threading.Event()
        self._thread = BackgroundThread("watchdog", self._run)

    def watch(self, seconds: float, action: Callable[[], None]) -> object:
        """Run ``action`` in another thread after ``seconds``, unless its handle is passed to ``forget`` first."""
        handle = object()
        self._limits[handle] = (time.monotonic() + seconds, action)
        if not self._busy.is_set():
            self._busy.set()
            self._thread.start()
        return handle

    def forget(self, handle: object) -> None:
        """Lift the limit of ``handle``."""
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
    """Makes a producer stop, whatever it is waiting for."""

    def __init__(self) -> None:
        self.requested = False
        self.reason: Exception | None = None  # the error for the readers, if any
        self._interrupt: Callable[[], None] | None = None

    def request(self, reason: Exception | None = None) -> None:
        """Interrupt the current wait, and prevent further ones."""
        self.reason, self.requested = reason, True
        if interrupt := self._interrupt:
            interrupt()

    @contextmanager
    def interrupts(self, interrupt: Callable[[], None]) -> Iterator[None]:
        """Call ``interrupt`` on a request inside the block. Raises Cancelled if one came before."""
        self._interrupt = interrupt
        try:
            if self.requested:
                raise Cancelled
            yield
        finally:
            self._interrupt = None


class SingleFlight:
    """Lets concurrent callers with the same key share one call."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._under_way: dict[str, list[Any]] = {}  # by key: the event of its end, then its result

    def call(self, key: str, function: Callable[[], Any]) -> Any:
        """The result of ``function``, called here or by the first caller with ``key``. It must not raise."""
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
