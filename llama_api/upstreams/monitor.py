"""The monitor of one Ollama: a probe each second, shared by all callers."""

import logging
import threading
import time
from collections.abc import Callable

from ..background import BackgroundThread
from ..errors import OllamaError, OllamaTimeout
from ..model_names import is_stub, normal
from ..ollama import OllamaClient
from .probe import Loaded, Probe, builds_of, fault_of_version, loaded_of

logger = logging.getLogger(__name__)
_NONE = Probe(float("-inf"), False, "Ollama has not answered yet")

PROBE_EVERY = 1.0  # seconds between the starts of two probes
PROBE_SECONDS = 0.9  # for one probe: with the period, what is reported is at most 2 s old
PS_SECONDS = 0.3  # of these for /api/ps, which blocks while a model is loaded
FRESH_SECONDS = 2.0  # maximum age of a probe that counts
FIRST_PROBE_SECONDS = 1.2  # maximum wait of a caller for a fresh probe
HURRY_SECONDS = 0.05  # minimum time between two probes


class Monitor:
    """Probes one Ollama in the background from the first use on."""

    def __init__(self, client: OllamaClient, host: str = "", clock: Callable[[], float] = time.monotonic):
        self._client, self._host, self._clock = client, host, clock
        self._subscribers: list[Callable[[Probe], object]] = []
        self._latest = _NONE
        self._probed, self._hurried = threading.Event(), threading.Event()
        self._thread = BackgroundThread("monitor", self._run)

    def subscribe(self, callback: Callable[[Probe], object]) -> None:
        """Call ``callback`` with each probe from now on."""
        self._subscribers.append(callback)

    def start(self) -> None:
        """Begin to probe, unless already begun."""
        self._thread.start()

    @property
    def latest(self) -> Probe:
        """The newest probe. Never waits."""
        return self._latest

    @property
    def known(self) -> bool:
        """Whether a probe has been made."""
        return self._latest is not _NONE

    @property
    def fresh(self) -> bool:
        """Whether the newest probe is at most 2 s old."""
        return self._clock() - self._latest.at <= FRESH_SECONDS

    def wait_fresh(self, seconds: float = FIRST_PROBE_SECONDS) -> None:
        """Wait until the newest probe is at most 2 s old, at most ``seconds``."""
        self.start()
        if not self.fresh:
            self._probed.clear()
            self.hurry()
            self._probed.wait(seconds)

    def hurry(self) -> None:
        """Make the next probe begin at once."""
        self._hurried.set()

    def probe(self) -> Probe:
        """Probe Ollama now."""
        started = self._clock()
        try:
            models = [model for model in self._client.inventory(PROBE_SECONDS) if isinstance(model.get("name"), str)]
        except OllamaError as error:
            reason = "Ollama does not answer; restart it" if isinstance(error, OllamaTimeout) else str(error)
            return self._record(Probe(started, False, reason, models=self._latest.models, stubs=self._latest.stubs))
        loaded = self._loaded(min(PS_SECONDS, self._left(started)))
        try:
            version = self._client.version(self._left(started))
        except OllamaError:
            version = None
        own = tuple(model for model in models if not is_stub(model))
        stubs = frozenset(normal(model["name"]) for model in models if is_stub(model))
        return self._record(Probe(started, True, None, version, own, stubs, builds_of(models), loaded))

    def _loaded(self, seconds: float) -> dict[str, Loaded] | None:
        try:
            return loaded_of(self._client.loaded(seconds))
        except OllamaError:
            return None

    def _left(self, started: float) -> float:
        """Seconds left for the probe that ``started`` then."""
        return max(0.1, PROBE_SECONDS - (self._clock() - started))

    def _record(self, probe: Probe) -> Probe:
        before, self._latest = self._latest, probe
        if before.reason != probe.reason:
            logger.log(logging.WARNING if probe.reason else logging.INFO, "Ollama %s: %s", self._host,
                       probe.reason or f"version {probe.version}")
        if before.version != probe.version and (fault := fault_of_version(probe.version)):
            logger.warning("Ollama %s: %s", self._host, fault)
        for callback in self._subscribers:
            callback(probe)
        self._probed.set()
        return probe

    def _run(self) -> None:
        while True:
            started = self._clock()
            try:
                self.probe()
            except Exception:
                logger.exception("the probe failed")
            time.sleep(HURRY_SECONDS)
            self._hurried.wait(max(0.0, PROBE_EVERY - (self._clock() - started)))
            self._hurried.clear()
