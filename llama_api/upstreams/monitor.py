"""What is known of one Ollama: a probe shared by all callers."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..model_names import normal
from ..ollama import OllamaClient
from ..errors import OllamaError, OllamaTimeout

logger = logging.getLogger(__name__)

PROBE_EVERY = 1.0  # seconds between the starts of two probes
PROBE_SECONDS = 0.9  # for one probe: with the period, what is reported is at most 2 s old
IDLE_SECONDS = 30.0  # after which an unasked monitor leaves Ollama in peace
FIRST_PROBE_SECONDS = 1.2  # longest wait of a caller for the first probe


@dataclass(frozen=True, slots=True)
class Probe:
    """One look at Ollama: whether it answers, has the model and which build; ``reason`` says what is wrong."""

    at: float
    reachable: bool
    version: str | None
    model_present: bool
    digest: str | None
    reason: str | None
    models: tuple[dict[str, Any], ...] = ()  # as /api/tags tells them


class Monitor:
    """Probes Ollama in the background while anybody asks. ``digest`` survives an outage: the last one seen stands."""

    def __init__(self, client: OllamaClient, model: str, clock: Callable[[], float] = time.monotonic):
        self._client, self._model, self._clock = client, model, clock
        self._latest: Probe | None = None
        self._digest: str | None = None
        self._digest_since = 0.0
        self._asked = 0.0
        self._wanted, self._probed = threading.Event(), threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def latest(self) -> Probe:
        """The newest probe, at most 2 s old. Blocks at most 1.2 s, and only when the last one is older than that."""
        self._asked = self._clock()
        if not self._wanted.is_set():
            with self._lock:
                self._probed.clear()
                self._wanted.set()
                if self._thread is None:
                    self._thread = threading.Thread(target=self._run, name="monitor", daemon=True)
                    self._thread.start()
        if not self._probed.is_set():
            self._probed.wait(FIRST_PROBE_SECONDS)
        return self._latest or Probe(self._clock(), False, None, False, None, "Ollama has not answered yet")

    def digest(self, model: str) -> str | None:
        """The build of the model as last seen, None when it was never seen."""
        self.latest()
        return self._digest

    def stale_since(self, model: str, digest: str | None) -> float | None:
        """When (monotonic) another build than ``digest`` was first seen; None when ``digest`` is the current one."""
        current = self.digest(model)
        return None if current is None or current == digest else self._digest_since

    def probe(self) -> Probe:
        """Look at Ollama now."""
        started = self._clock()
        try:
            models = self._client.inventory(PROBE_SECONDS)
        except OllamaTimeout:
            return self._note(Probe(started, False, None, False, None, "Ollama does not answer; restart it"))
        except OllamaError as error:
            return self._note(Probe(started, False, None, False, None, str(error)))
        wanted = normal(self._model)
        digest = next((model.get("digest") for model in models if normal(str(model.get("name"))) == wanted), "")
        try:
            version = self._client.version(max(0.1, PROBE_SECONDS - (self._clock() - started)))
        except OllamaError:
            version = None
        missing = f"Ollama does not have the model; run `ollama pull {self._model}`" if digest == "" else None
        return self._note(Probe(started, True, version, digest != "", str(digest) if digest else None, missing,
                                tuple(models)))

    def _note(self, probe: Probe) -> Probe:
        if probe.digest and probe.digest != self._digest:
            self._digest, self._digest_since = probe.digest, self._clock()
        if self._latest is None or self._latest.reason != probe.reason:
            logger.log(logging.WARNING if probe.reason else logging.INFO, "Ollama: %s", probe.reason or "ready")
        self._latest = probe
        self._probed.set()
        return probe

    def _run(self) -> None:
        while True:
            self._wanted.wait()
            started = self._clock()
            try:
                self.probe()
            except Exception:
                logger.exception("the probe failed")
            time.sleep(max(0.1, PROBE_EVERY - (self._clock() - started)))
            if self._clock() - self._asked > IDLE_SECONDS:
                with self._lock:
                    self._wanted.clear()
