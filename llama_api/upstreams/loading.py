"""Loads of models: shared by all who wait for one, and thrown away for nobody who leaves.

Ollama gives a load up when the caller goes away that began it (``server/sched.go``), and the next one pays for it anew.
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

RETRY_SECONDS = 5.0  # after which a load at the start that failed is tried again


@dataclass(slots=True)
class _Load:
    """A load under way, and whom to wake at its end."""

    waiting: list[threading.Event] = field(default_factory=list)
    ended: bool = False
    error: BaseException | None = None


class Loads:
    """At most one load of a model at an Ollama, whoever asks for it; nobody who leaves ends it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._under_way: dict[tuple[Upstream, str], _Load] = {}

    def load(self, upstream: Upstream, model: str, cancellation: Cancellation) -> None:
        """Have ``model`` loaded and wait until it is. Raises OllamaError, or Cancelled for this caller alone."""
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
        except BaseException as error:  # those who wait must not take a load that died for one that is done
            load.error = error
        finally:
            with self._lock:
                del self._under_way[upstream, model]
                load.ended = True
            for woken in load.waiting:
                woken.set()


class Preload:
    """Has each Ollama load ``model`` when the service has started, and when that Ollama has started anew."""

    def __init__(self, loads: Loads, model: str, clock: Callable[[], float] = time.monotonic):
        self._loads, self._model, self._clock = loads, model, clock
        self._done: set[Upstream] = set()
        self._not_before: dict[Upstream, float] = {}  # when to try those that failed again
        self._under_way: set[Upstream] = set()
        self._failure: dict[Upstream, str] = {}

    def pending(self, upstream: Upstream) -> str | None:
        """Why ``upstream`` is not ready yet, a sentence; None when it has loaded the model."""
        if upstream in self._done:
            return None
        return self.failure(upstream) or f"it is loading the model {self._model}"

    def failure(self, upstream: Upstream) -> str | None:
        """How the last load at ``upstream`` failed, a sentence; None when none has, or the model is loaded since."""
        if upstream in self._done or (failure := self._failure.get(upstream)) is None:
            return None
        return f"it could not load the model {self._model}, and will be asked again: {failure.removesuffix('.')}"

    def look(self, upstream: Upstream) -> None:
        """See, after a probe of ``upstream``, whether it has to load the model."""
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
            self._failed(upstream, "the service failed, as its log tells")
        finally:
            self._under_way.discard(upstream)

    def _failed(self, upstream: Upstream, why: str) -> None:
        self._failure[upstream], self._not_before[upstream] = why, self._clock() + RETRY_SECONDS
