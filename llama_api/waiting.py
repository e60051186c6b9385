"""How a wait ends early: a time limit that passes, a generation that nobody wants any more."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

logger = logging.getLogger(__name__)

WATCH_TICK = 0.05  # seconds: how late a time limit may strike


class Cancelled(Exception):
    """Nobody waits for this generation any more."""


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
