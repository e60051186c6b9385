"""Background threads that start at first use."""

import threading
from collections.abc import Callable


class BackgroundThread:
    """A daemon thread called ``name`` that executes ``run``."""

    def __init__(self, name: str, run: Callable[[], None]):
        self._name, self._run = name, run
        self._lock, self._started = threading.Lock(), False

    def start(self) -> None:
        """Start the thread, unless already started. Raises RuntimeError when no thread can be started."""
        if not self._started:
            with self._lock:
                if not self._started:
                    threading.Thread(target=self._run, name=self._name, daemon=True).start()
                    self._started = True
