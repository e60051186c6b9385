"""Loads of models. Callers that need the same model share one load, and it continues when a caller leaves.

Ollama abandons a load when the client that began it leaves (``server/sched.go``), and the next one pays for it again.
"""

import _thread
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from ..errors import OllamaError
from ..waiting import Cancellation, Cancelled
from .upstream import Upstream

logger = logging.getLogger(__name__)

RETRY_SECONDS = 5.0  # after which a failed load at start is tried again


@dataclass(slots=True)
class _Load:
    """A load under way, and the waiters to wake at its end."""

    waiting: list[threading.Event] = field(default_factory=list)
    ended: bool = False
    error: BaseException | None = None


class Loads:
    """At most one load of a model at each Ollama, shared by its callers; it continues when a caller leaves."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._under_way: dict[tuple[Upstream, str], _Load] = {}

    def load(self, upstream: Upstream, model: str, cancellation: Cancellation) -> None:
        """Load ``model`` and wait for it. Raises OllamaError, or Cancelled for this caller only."""
        woken = threading.Event()
        with self._lock:
            load = self._under_way.get((upstream, model))
            if load is None:
                load = self._under_way[upstream, model] = _Load()
                _thread.start_new_thread(self._run, (upstream, model, load))
            load.waiting.append(woken)
        with cancellation.interrupts(woken.set):
            woken.wait()
        if load.error is not None:
            raise load.error.with_traceback(None)
        if not load.ended:
            raise Cancelled

    def _run(self, upstream: Upstream, model: str, load: _Load) -> None:
        try:
            upstream.client.load(model, Cancellation())
            upstream.answered(model)
        except BaseException as error:  # waiters must not mistake a dead load for a finished one
            load.error = error
        finally:
            with self._lock:
                del self._under_way[upstream, model]
                load.ended = True
            for woken in load.waiting:
                woken.set()


class Preload:
    """Has each Ollama load ``model`` when the service starts and when that Ollama restarts."""

    def __init__(self, loads: Loads, model: str, clock: Callable[[], float] = time.monotonic):
        self._loads, self._model, self._clock = loads, model, clock
        self._done: set[Upstream] = set()
        self._not_before: dict[Upstream, float] = {}  # when to retry after a failure
        self._under_way: set[Upstream] = set()
        self._failure: dict[Upstream, str] = {}

    def pending(self, upstream: Upstream) -> str | None:
        """Why ``upstream`` is not ready, a sentence; None when it has loaded the model."""
        if upstream in self._done:
            return None
        return self.failure(upstream) or f"it is loading the model {self._model}"

    def failure(self, upstream: Upstream) -> str | None:
        """How the last load at ``upstream`` failed, a sentence; None if it succeeded or the model is loaded now."""
        if upstream in self._done or (failure := self._failure.get(upstream)) is None:
            return None
        return f"it could not load the model {self._model}, and will be asked again: {failure.removesuffix('.')}"

    def on_probe(self, upstream: Upstream) -> None:
        """Load the model at ``upstream`` if a new probe of it shows the need."""
        if not upstream.monitor.latest.reachable or upstream.lost(self._model):
            self._done.discard(upstream)
        if upstream.loaded(self._model):
            self._done.add(upstream)
        due = self._clock() >= self._not_before.get(upstream, 0.0)
        if due and upstream not in self._done | self._under_way and upstream.has(self._model):
            self._under_way.add(upstream)
            _thread.start_new_thread(self._run, (upstream,))

    def _run(self, upstream: Upstream) -> None:
        logger.info("%s loads the model %s", upstream.host, self._model)
        try:
            self._loads.load(upstream, self._model, Cancellation())
            self._done.add(upstream)
            self._failure.pop(upstream, None)
        except OllamaError as error:
            logger.warning("%s could not load the model %s: %s", upstream.host, self._model, error)
            self._failed(upstream, str(error))
        except Exception:
            logger.exception("the load of the model %s at %s failed", self._model, upstream.host)
            self._failed(upstream, "the service failed; its log says why")
        finally:
            self._under_way.discard(upstream)

    def _failed(self, upstream: Upstream, why: str) -> None:
        self._failure[upstream], self._not_before[upstream] = why, self._clock() + RETRY_SECONDS
