"""One Ollama: its client, its monitor, its breaker and its slots."""

import time
from collections.abc import Callable

from ..errors import OllamaError, RemoteModel
from ..model_names import normal
from ..ollama import OllamaClient
from .breaker import Breaker
from .monitor import Monitor
from .probe import Loaded, Probe, builds_of, fault_of_version
from .slots import Slots

CURE_CPU = "at least half of the model runs on the CPU; free GPU memory, or lower NUM_CTX or PARALLEL"
ASK_SECONDS = 0.5
PROVEN_SECONDS = 1.5  # after an answer, during which its model must still be in memory
LOST_SECONDS = 5.0  # by which a model leaves memory early to count as lost, more than clocks differ


class Upstream:
    """One Ollama; ``host`` names it in the log and in metrics, such as ``127.0.0.1:11434``."""

    def __init__(self, host: str, client: OllamaClient, monitor: Monitor, breaker: Breaker, slots: Slots,
                 clock: Callable[[], float] = time.monotonic):
        self.host, self.client, self.monitor, self.breaker, self.slots = host, client, monitor, breaker, slots
        self._clock = clock
        self._failed_at = float("-inf")
        self._answered_at: dict[str, float] = {}  # by model
        self._tells_loaded = True
        self._gone_at: float | None = None  # start of the first probe of the current series of failures
        self._loaded_before: dict[str, Loaded] = {}  # by the last but one probe that reported it
        self._loaded_last: dict[str, Loaded] = {}

    def __repr__(self) -> str:
        return f"<Upstream {self.host}: {self.slots!r}, {self.monitor.latest.reason or 'reachable'}>"

    def failed(self) -> None:
        """Do not use it until a probe that begins after now succeeds."""
        self._failed_at = self._clock()
        self.monitor.hurry()

    @property
    def reached(self) -> bool:
        """Whether its newest probe is fresh and reached it, and it has not failed since."""
        probe = self.monitor.latest
        return probe.reachable and probe.at > self._failed_at and self.monitor.fresh

    @property
    def gone_for(self) -> float:
        """Seconds for which no probe has reached it."""
        return 0.0 if self._gone_at is None else self._clock() - self._gone_at

    def has(self, model: str) -> bool:
        """Whether it has ``model``, as of the newest probe."""
        return normal(model) in self.monitor.latest.builds

    def has_stub(self, model: str) -> bool:
        """Whether its ``model`` runs on another host, as of the newest probe."""
        return normal(model) in self.monitor.latest.stubs

    def still_has(self, model: str, build: str | None) -> bool:
        """Ask it whether it has ``model`` in ``build`` now; False when it does not answer."""
        try:
            builds = builds_of(self.client.inventory(ASK_SECONDS))
        except OllamaError:
            return False
        if normal(model) in builds and builds[normal(model)] == build:
            return True
        self.monitor.hurry()
        return False

    def loaded(self, model: str) -> bool | None:
        """Whether ``model`` is in its memory as of the newest probe or of a later answer; None when unknown."""
        probe, name = self.monitor.latest, normal(model)
        if probe.loaded is None or not self._tells_loaded:
            return None
        return name in probe.loaded or self._answered_at.get(name, float("-inf")) >= probe.at

    def lost(self, model: str) -> bool:
        """Whether ``model`` left its memory early and not for another one, as when Ollama restarted."""
        before = self._loaded_before.get(normal(model))
        return before is not None and not self._loaded_last and (before.expires or 0.0) > time.time() + LOST_SECONDS

    @property
    def emptied(self) -> bool:
        """Whether its memory has become empty as of the newest probe that reported it."""
        return bool(self._loaded_before) and not self._loaded_last

    def answered(self, model: str) -> None:
        """Note that it has just answered for ``model``, which is therefore in memory."""
        self._answered_at[normal(model)] = self._clock()

    def on_probe(self, probe: Probe) -> None:
        """Check with a new probe that /api/ps is reliable: a model that has just answered must be in it."""
        self._gone_at = None if probe.reachable else self._gone_at or probe.at
        if probe.loaded is not None:
            self._loaded_before, self._loaded_last = self._loaded_last, probe.loaded
        if probe.loaded:
            self._tells_loaded = True
        elif probe.loaded is not None and any(0 <= probe.at - at < PROVEN_SECONDS for at in self._answered_at.values()):
            self._tells_loaded = False

    def out_of_use(self, model: str, build: str | None) -> str | None:
        """Why it cannot answer for ``model`` in ``build``, a sentence; None when it can."""
        probe = self.monitor.latest
        if not probe.reachable:
            return probe.reason
        if not self.reached:
            return "it failed or did not answer in time, and is not used until a probe succeeds"
        if self.has_stub(model):
            return str(RemoteModel(model)).removesuffix(".")
        if normal(model) not in probe.builds:
            return f"Ollama does not have the model; run `ollama pull {model}`"
        if (own := probe.builds[normal(model)]) != build:
            return (f"it has another build of the model ({(own or 'unknown')[:12]}) than the others"
                    f" ({(build or 'unknown')[:12]}); run `ollama pull {model}` where it is older")
        return None

    def complaint(self, model: str) -> str | None:
        """A sentence on its faults although it can answer, or None."""
        probe = self.monitor.latest
        loaded = (probe.loaded or {}).get(normal(model))
        on_cpu = loaded is not None and loaded.gpu_percent is not None and 0 < loaded.gpu_percent <= 50
        found = (self.breaker.reason, fault_of_version(probe.version), CURE_CPU if on_cpu else None)
        return "; ".join(complaint for complaint in found if complaint) or None
