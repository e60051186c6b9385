"""The availability of Ollamas: those usable for a model, and the build that answers."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache

from ..errors import ModelNotFound, OllamaError, OllamaHangs, OllamaUnavailable, RemoteModel
from ..model_names import normal
from .monitor import FRESH_SECONDS
from .upstream import Upstream

GRACE_SECONDS = 2.0  # to wait for the next probes if all Ollamas have just become unusable
_ABSENT = ""  # not the name of any build
_normal = lru_cache(maxsize=1024)(normal)


class Availability:
    """The Ollamas in configured order, as of their newest probes.

    A single one always counts as usable: its answer to a call is newer than any probe.
    """

    def __init__(self, upstreams: Sequence[Upstream], clock: Callable[[], float] = time.monotonic):
        self.upstreams, self._clock = tuple(upstreams), clock
        self._builds: dict[str, tuple[str | None, float]] = {}  # by model: the build that answers, and since when
        self._usable_at: dict[str, float] = {}  # by model: when one was last usable
        self._usable: dict[str, tuple[list[Upstream], float]] = {}  # by model, and until when that holds
        self._listed: frozenset[str] = frozenset()
        self.removed: Callable[[], object] = lambda: None  # called when a model is no longer listed

    def on_probe(self) -> None:
        """Update the builds after a probe: for each model the most common build, in a tie the first listed.

        A model that no Ollama has any more keeps its last build.
        """
        counts: dict[str, Counter[str | None]] = {}
        for upstream in self.upstreams:
            latest = upstream.monitor.latest
            for model, build in latest.builds.items():
                counts.setdefault(model, Counter())[build] += 1
        self._usable.clear()
        for model, builds in counts.items():
            build = builds.most_common(1)[0][0]
            if model not in self._builds or self._builds[model][0] != build:
                self._builds[model] = build, self._clock()
        before, self._listed = self._listed, frozenset(
            str(model["name"]) for upstream in self.upstreams for model in upstream.monitor.latest.models)
        if before - self._listed:
            self.removed()

    def build(self, model: str) -> str | None:
        """The build of ``model`` that answers, None when unknown."""
        return self._builds.get(_normal(model), (None, 0.0))[0]

    def stale_since(self, model: str, build: str | None) -> float | None:
        """When (monotonic) another build than ``build`` was first seen to answer; None while that one does."""
        current, since = self._builds.get(_normal(model), (None, 0.0))
        return None if current is None or current == build else since

    def failed(self, upstream: Upstream) -> None:
        """Do not use ``upstream`` until a probe that begins after now succeeds."""
        upstream.failed()
        self._usable.clear()

    def hosts(self, model: str) -> Sequence[Upstream]:
        """The usable Ollamas for ``model`` in configured order."""
        if len(self.upstreams) == 1:
            return self.upstreams
        name, now = _normal(model), self._clock()
        usable, until = self._usable.get(name, ([], 0.0))
        if now > until:
            usable, until = self._usable[name] = self._find_usable(name)
        if not all(upstream.breaker.admits for upstream in usable):
            usable = [upstream for upstream in usable if upstream.breaker.admits]
        if usable:
            self._usable_at[name] = now
        return usable

    def _find_usable(self, name: str) -> tuple[list[Upstream], float]:
        """The Ollamas whose fresh probe found ``name`` in the build that answers, and until when that holds."""
        build = self._builds.get(name, (None, 0.0))[0]
        usable = [upstream for upstream in self.upstreams
                  if upstream.reached and upstream.monitor.latest.builds.get(name, _ABSENT) == build]
        return usable, min((upstream.monitor.latest.at + FRESH_SECONDS for upstream in usable), default=0.0)

    def failure(self, model: str) -> OllamaError | None:
        """Why no Ollama can answer for ``model``; None while waiting for the next probes makes sense."""
        if self._clock() - self._usable_at.get(_normal(model), float("-inf")) <= GRACE_SECONDS:
            return None
        reached = [upstream for upstream in self.upstreams if upstream.reached]
        if hanging := [upstream.breaker for upstream in reached if not upstream.breaker.admits]:
            return OllamaHangs(max(breaker.timeouts for breaker in hanging))
        return self.not_found_error(model) if reached else OllamaUnavailable()

    def not_found_error(self, model: str) -> ModelNotFound:
        """The error for a ``model`` that no Ollama has, except perhaps as a stub."""
        return RemoteModel(model) if any(one.has_stub(model) for one in self.upstreams) else ModelNotFound(model)
