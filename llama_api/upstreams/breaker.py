"""A circuit breaker for hangs of Ollama that no probe can see."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..errors import OllamaError, OllamaHangs, OllamaTimeout, OllamaUnavailable
from ..waiting import Cancelled

HANG_TIMEOUTS = 3  # generations in a row that time out before callers are turned away
RECENT_SECONDS = 60.0


class Breaker:
    """Stops sending requests to an Ollama that hangs while its other endpoints answer (ollama issue 15950).

    After HANG_TIMEOUTS generations in a row timed out without a piece, one at a time is let through as a trial and the
    others fail at once; any answer, even an error or a single piece, closes the breaker again.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self.timeouts = 0  # in a row
        self._last_timeout = 0.0
        self._trial: object | None = None

    @property
    def open(self) -> bool:
        """Whether only a trial at a time is let through."""
        return self.timeouts >= HANG_TIMEOUTS

    @property
    def admits(self) -> bool:
        """Whether one more generation would be let through."""
        return self.timeouts < HANG_TIMEOUTS or self._trial is None

    @property
    def reason(self) -> str | None:
        """Why the service is degraded, None when it is not."""
        recent = self.timeouts and self._clock() - self._last_timeout < RECENT_SECONDS
        if not (self.open or recent):
            return None
        last = "generation" if self.timeouts == 1 else f"{self.timeouts} generations"
        return f"the last {last} timed out; restart Ollama if this continues"

    def check(self) -> None:
        """Raise OllamaHangs when one more generation would not be let through."""
        if not self.admits:
            raise OllamaHangs(self.timeouts)

    @contextmanager
    def admission(self) -> Iterator[None]:
        """Let one generation through and record how it ends. Raises OllamaHangs while another one is the trial."""
        mine = object()
        with self._lock:
            self.check()
            if self.open:
                self._trial = mine
        try:
            yield
        except OllamaTimeout as error:
            with self._lock:
                self.timeouts = 0 if error.flowing else self.timeouts + 1
                self._last_timeout = self._clock()
            raise
        except (OllamaUnavailable, Cancelled):
            raise
        except OllamaError:
            self.timeouts = 0
            raise
        else:
            self.timeouts = 0
        finally:
            with self._lock:
                if self._trial is mine:
                    self._trial = None
