"""Which Ollamas are usable for a model, and which of its builds answers."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache

from ..errors import ModelNotFound, OllamaError, OllamaHangs, OllamaUnavailable, RemoteModel
from ..model_names import normal
from .monitor import FRESH_SECONDS
from .upstream import Upstream

GRACE_SECONDS = 2.0  # for which a call waits for the next probes, should all have gone out of use just now
_ABSENT = ""  # no build is called that
_normal = lru_cache(maxsize=1024)(normal)


class Roster:
    """The Ollamas in the order in which they are listed, seen through their newest probes.

    A single one is always taken for usable: what it says of a call is newer than any probe.
    """

    def __init__(self, upstreams: Sequence[Upstream], clock: Callable[[], float] = time.monotonic):
        self.upstreams, self._clock = tuple(upstreams), clock
        self._builds: dict[str, tuple[str | None, float]] = {}  # by model: the build that answers, and since when
        self._usable_at: dict[str, float] = {}  # by model: when one was last usable
        self._usable: dict[str, tuple[list[Upstream], float]] = {}  # by model, and until when that holds
        self._listed: frozenset[str] = frozenset()
        self.removed: Callable[[], object] = lambda: None  # called when a model is listed no more

    def noted(self) -> None:
        """Bring the builds up to date after a probe: of each model the one that most have, of these the first listed.

        A model that none has any more keeps the last one.
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
        """The build of ``model`` that answers, None when none was ever seen or told."""
        return self._builds.get(_normal(model), (None, 0.0))[0]

    def stale_since(self, model: str, build: str | None) -> float | None:
        """When (monotonic) another build than ``build`` was first seen to answer; None while that one does."""
        current, since = self._builds.get(_normal(model), (None, 0.0))
        return None if current is None or current == build else since

    def failed(self, upstream: Upstream) -> None:
        """Leave ``upstream`` alone until a probe that begins from now on has found it well."""
        upstream.failed()
        self._usable.clear()

    def hosts(self, model: str) -> Sequence[Upstream]:
        """Those that are usable for ``model``, in the order in which they are listed."""
        if len(self.upstreams) == 1:
            return self.upstreams
        name, now = _normal(model), self._clock()
        usable, until = self._usable.get(name, ([], 0.0))
        if now > until:
            usable, until = self._usable[name] = self._look(name)
        if not all(upstream.breaker.admits for upstream in usable):
            usable = [upstream for upstream in usable if upstream.breaker.admits]
        if usable:
            self._usable_at[name] = now
        return usable

    def _look(self, name: str) -> tuple[list[Upstream], float]:
        """The Ollamas whose newest probe has found the model ``name`` in the build that answers, while it is fresh."""
        build = self._builds.get(name, (None, 0.0))[0]
        usable = [upstream for upstream in self.upstreams
                  if upstream.reached and upstream.monitor.latest.builds.get(name, _ABSENT) == build]
        return usable, min((upstream.monitor.latest.at + FRESH_SECONDS for upstream in usable), default=0.0)

    def failure(self, model: str) -> OllamaError | None:
        """Why no Ollama can answer for ``model``; None as long as it is worth a wait for the next probes."""
        if self._clock() - self._usable_at.get(_normal(model), float("-inf")) <= GRACE_SECONDS:
            return None
        reached = [upstream for upstream in self.upstreams if upstream.reached]
        if hanging := [upstream.breaker for upstream in reached if not upstream.breaker.admits]:
            return OllamaHangs(max(breaker.timeouts for breaker in hanging))
        return self.lack(model) if reached else OllamaUnavailable()

    def lack(self, model: str) -> ModelNotFound:
        """What to say of a ``model`` that none has: there may be a stub of it."""
        return RemoteModel(model) if any(one.has_stub(model) for one in self.upstreams) else ModelNotFound(model)
