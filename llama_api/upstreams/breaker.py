"""A breaker for the hang of Ollama that no probe can see."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..errors import OllamaError, OllamaHangs, OllamaTimeout, OllamaUnavailable
from ..waiting import Cancelled

HANG_TIMEOUTS = 3  # generations in a row that time out before callers are turned away
RECENT_SECONDS = 60.0


class Breaker:
    """Stops piling requests on an Ollama that hangs (its other endpoints stay green; ollama issue 15950).

    After HANG_TIMEOUTS generations in a row timed out, one at a time is let through as a trial and the others fail at
    once; any answer of Ollama's, even an error, closes it again.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._timeouts = 0
        self._last_timeout = 0.0
        self._trial: object | None = None

    @property
    def open(self) -> bool:
        """Whether only a trial at a time is let through."""
        return self._timeouts >= HANG_TIMEOUTS

    @property
    def reason(self) -> str | None:
        """Why the service is degraded, None when it is not."""
        recent = self._timeouts and self._clock() - self._last_timeout < RECENT_SECONDS
        if not (self.open or recent):
            return None
        return f"generations in a row that timed out: {self._timeouts}; Ollama may hang: restart it if this lasts"

    @contextmanager
    def admission(self) -> Iterator[Callable[[], None]]:
        """Let one generation through. The block calls what it is given once more after its wait for a slot.

        Raises OllamaUnavailable when the breaker is open and a trial is under way.
        """
        mine = object()

        def admit() -> None:
            with self._lock:
                if self.open and self._trial not in (None, mine):
                    raise OllamaHangs(self._timeouts)
                if self.open:
                    self._trial = mine

        try:
            admit()
            yield admit
        except OllamaTimeout:
            with self._lock:
                self._timeouts, self._last_timeout = self._timeouts + 1, self._clock()
            raise
        except (OllamaUnavailable, Cancelled):
            raise
        except OllamaError:
            self._timeouts = 0
            raise
        else:
            self._timeouts = 0
        finally:
            with self._lock:
                if self._trial is mine:
                    self._trial = None
