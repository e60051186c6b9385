"""The checks of ``doctor`` on one Ollama."""

import logging
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from ..errors import OllamaError, OllamaTimeout, OllamaUnavailable, RemoteModel
from ..model_call import GENERATE, ModelCall
from ..model_names import is_stub, normal
from ..ollama import OllamaClient
from ..settings import PREFIX, OllamaHost, Settings
from ..upstreams import builds_of, fault_of_version
from ..waiting import Cancellation, Watchdog
from .client import PROBE_SECONDS
from .finding import FAULT, OK, WARNING, Finding

AT_ONCE = 8  # most generations to test how many Ollama runs at once


class OllamaCheck:
    """One Ollama and the checks on it."""

    def __init__(self, host: OllamaHost, chosen: Settings):
        self.host, self._settings = host, chosen
        self._client = OllamaClient(host.url, chosen, Watchdog())
        self.present, self.digest = False, ""

    def findings(self) -> Iterator[Finding]:
        """Check that it answers, its version, its models, how the model is loaded, and its window."""
        model = self._settings.model
        with _spoken() as said:
            try:
                version = self._client.version(PROBE_SECONDS)
                models = self._client.inventory(PROBE_SECONDS)
            except OllamaError as error:
                yield self._found(FAULT, self._why(error, said))
                return
        if fault := fault_of_version(version):
            yield self._found(WARNING, f"answers; {fault}")
        else:
            yield self._found(OK, f"answers; version {version or 'unknown'}")
        builds = builds_of(models)
        stubs = {normal(str(entry.get("name"))) for entry in models if is_stub(entry)}
        self.present, self.digest = normal(model) in builds, builds.get(normal(model)) or ""
        if self.present:
            yield self._found(OK, f"has {model}, build {self.digest[:12]}")
        elif normal(model) in stubs:
            yield self._found(FAULT, str(RemoteModel(model)))
        else:
            yield self._found(FAULT, f"does not have {model}: run `llama-api pull`, or `ollama pull {model}` there")
        for other in self._settings.models:
            if normal(other) in stubs:
                yield self._found(WARNING, str(RemoteModel(other)))
            elif other != "*" and normal(other) not in builds:
                yield self._found(WARNING, f"does not have {other} of {PREFIX}MODELS: run `ollama pull {other}` there")
        if self.present:
            yield from self._loaded()

    def _loaded(self) -> Iterator[Finding]:
        """Check where the model is in memory, and its current and its largest window."""
        with _spoken():
            try:
                loaded = self._client.loaded(PROBE_SECONDS)
                info = self._client.show(self._settings.model).get("model_info") or {}
            except OllamaError as error:
                yield self._found(WARNING, f"does not report how the model is loaded: {error}")
                return
        entry = next((one for one in loaded if normal(str(one.get("name"))) == normal(self._settings.model)), {})
        yield self._on_gpu(entry)
        window = entry.get("context_length")
        yield self._window(window if isinstance(window, int) else None,
                           next((value for key, value in info.items() if key.endswith(".context_length")), None))

    def _on_gpu(self, entry: dict[str, Any]) -> Finding:
        if not entry:
            return self._found(OK, "the model is not loaded, so the first answer waits for that: set"
                                   f" {PREFIX}PRELOAD=true and {PREFIX}KEEP_ALIVE=-1 to have it ready")
        size, on_gpu = entry.get("size") or 0, entry.get("size_vram") or 0
        share = round(100 * on_gpu / size) if size else 0
        if share == 0:
            return self._found(WARNING, "the model is loaded, and runs on the CPU only: if there is a GPU, Ollama's log"
                                        " says why it is not used")
        if share < 100:
            return self._found(WARNING, f"only {share} % of the model is on the GPU, and the rest is slow: free"
                                        f" GPU memory, lower {PREFIX}NUM_CTX or OLLAMA_NUM_PARALLEL, or use a"
                                        " smaller model")
        return self._found(OK, "the model is loaded, all of it on the GPU")

    def _window(self, now: int | None, trained: Any) -> Finding:
        """Compare NUM_CTX with the window ``now`` in memory and with the one that the model was ``trained`` for."""
        asked = self._settings.num_ctx
        if asked is None:
            return self._found(OK, f"the context window is Ollama's choice: {now or 'not known until the model is'}"
                                   f"{' tokens' if now else ' loaded'}; {PREFIX}NUM_CTX is not set")
        if isinstance(trained, int) and asked > trained:
            return self._found(WARNING, f"{PREFIX}NUM_CTX={asked} is more than the {trained} tokens that the model was"
                                        f" trained for: set {trained} or less")
        if now is not None and now != asked:
            return self._found(WARNING, f"the model is loaded with a window of {now} tokens, which {PREFIX}NUM_CTX="
                                        f"{asked} will change by loading it again: give all its users the same window")
        return self._found(OK, f"{PREFIX}NUM_CTX={asked} fits the model's window of {trained or 'unknown'} tokens")

    def generations(self, running: int) -> Iterator[Finding]:
        """Generate one token, and check that as many generations run at once as it has slots.

        ``running`` is how many the service has under way; they would falsify the second check.
        """
        started = time.monotonic()
        with _spoken() as said:
            try:
                self._generate(1)
            except OllamaError as error:
                yield self._found(FAULT, f"cannot generate: {self._why(error, said)}")
                return
        yield self._found(OK, f"generated a token in {time.monotonic() - started:.2f} s")
        slots = self.host.slots or self._settings.parallel
        if slots == 1:
            yield self._found(OK, f"gets one generation at a time, as {PREFIX}PARALLEL says")
        elif running:
            yield self._found(OK, f"gets {slots} generations at a time; whether it runs them at once can be tried while"
                                  " the service does not generate")
        else:
            yield self._at_once(slots)

    def _at_once(self, slots: int) -> Finding:
        """Compare ``slots`` with the number of generations that Ollama runs at once, those that do not wait in it."""
        tried = min(slots, AT_ONCE)
        with _spoken() as said:
            try:
                with ThreadPoolExecutor(tried) as pool:
                    waits = list(pool.map(lambda _: self._generate(8), range(tried)))
            except OllamaError as error:
                return self._found(FAULT, f"{tried} generations at once fail: {self._why(error, said)}")
        # Of generations that run one after the other, the first waits for none, the second for one, and so on.
        # So the shortest wait was for something else.
        beside = sum(waited - min(waits) < 0.5 for waited in waits)
        if beside >= tried:
            return self._found(OK, f"runs {tried} generations at once, and {PREFIX}PARALLEL gives it {slots}")
        return self._found(WARNING, f"ran {beside} of {tried} generations at once: set OLLAMA_NUM_PARALLEL={slots} for"
                                    f" it, or lower {PREFIX}PARALLEL")

    def _generate(self, tokens: int) -> float:
        """Generate some tokens; returns its wait inside Ollama as a multiple of its own time."""
        chosen = self._settings
        call = ModelCall.of(GENERATE, chosen.model, {"num_predict": tokens, "num_ctx": chosen.num_ctx}, prompt="Hi",
                            truncate=False)
        end = self._client.generate(call, self.digest, chosen.timeout, Cancellation(), lambda pieces: None)
        own = (end.prompt_eval_duration or 0) + (end.eval_duration or 0)
        waited = (end.total_duration or 0) - (end.load_duration or 0) - own
        return waited / own if own else 0.0

    def _found(self, level: str, text: str) -> Finding:
        return Finding(level, self.host.name, text)

    def _why(self, error: OllamaError, said: list[str]) -> str:
        """The fault, what Ollama ``said``, and what to do."""
        if type(error) is OllamaUnavailable:
            return ("nothing accepts connections: start Ollama there with `ollama serve`, or correct"
                    f" {PREFIX}OLLAMA_URL")
        if isinstance(error, OllamaTimeout):
            return "it does not answer in time: see Ollama's log, and restart it"
        return " ".join([str(error), *said[-1:]])


@contextmanager
def _spoken() -> Iterator[list[str]]:
    """The warnings that the ollama wing logs inside the block: Ollama's own error messages."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger(OllamaClient.__module__.rpartition(".")[0])
    logger.addHandler(handler)
    try:
        yield said
    finally:
        logger.removeHandler(handler)
