"""``doctor``: look at everything that may be wrong, and say of each what was found and what to do."""

import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import click
import requests

from ..cache import StoreError, open_store
from ..errors import OllamaError
from ..model_call import GENERATE, ModelCall
from ..model_names import normal
from ..ollama import OllamaClient
from ..settings import PREFIX, OllamaHost, Settings, SettingsError
from ..upstreams import Probe
from ..waiting import Cancellation, Watchdog
from .client import Server, settings

PROBE_SECONDS = 3.0
AT_ONCE = 8  # generations at most that look at how many Ollama takes at once
OK, WARNING, FAULT = "ok", "warning", "fault"
COLOURS = {OK: "green", WARNING: "yellow", FAULT: "red"}


class Finding(NamedTuple):
    """What a check found: its level, what was looked at, and a sentence with the cure."""

    level: str
    subject: str
    text: str


@click.command()
def doctor() -> None:
    """Check settings, log file, port, each Ollama, the shared store and a generation; change nothing."""
    faults = 0
    for level, subject, text in findings():
        faults += level == FAULT
        click.echo(f"{click.style(f'{level:8}', COLOURS[level])} {subject:22} {text}")
    sys.exit(1 if faults else 0)


def findings() -> Iterator[Finding]:
    """What each check found, as it is found."""
    try:
        chosen = settings()
    except click.ClickException as error:
        cause = error.__cause__ or error.__context__
        for fault in cause.faults if isinstance(cause, SettingsError) else [error.message]:
            yield Finding(FAULT, "settings", f"{fault}; the other checks need settings that are right")
        return
    yield Finding(OK, "settings", "all can be read")
    yield from (Finding(WARNING, "settings", warning) for warning in chosen.warnings())
    yield _log_file(chosen.log_file)
    yield _port(chosen)
    looks = [Look(host, chosen) for host in chosen.ollamas]
    for look in looks:
        yield from look.findings()
    yield from _builds(looks, chosen.model)
    yield _store(chosen)
    for look in looks:
        if look.present:
            yield from look.generations()


class Look:
    """One Ollama, looked at."""

    def __init__(self, host: OllamaHost, chosen: Settings):
        self.host, self._settings = host, chosen
        self._client = OllamaClient(host.url, chosen, Watchdog())
        self.present, self.digest = False, ""

    def findings(self) -> Iterator[Finding]:
        """Whether it answers, its version, the model, how that is loaded, and its window."""
        name, model = self.host.name, self._settings.model
        try:
            version = self._client.version(PROBE_SECONDS)
            models = self._client.inventory(PROBE_SECONDS)
        except OllamaError as error:
            yield Finding(FAULT, name, str(error))
            return
        if Probe(time.monotonic(), True, version=version).cuts_prompts:
            yield Finding(WARNING, name, f"answers; version {version} cuts prompts that are too long in silence: update"
                                         " Ollama to 0.12.6 or newer")
        else:
            yield Finding(OK, name, f"answers; version {version or 'unknown'}")
        entry = next((entry for entry in models if normal(str(entry.get("name"))) == normal(model)), None)
        if entry is None:
            yield Finding(FAULT, name, f"does not have {model}; run `llama-api pull`, or `ollama pull {model}` there")
            return
        self.present, self.digest = True, str(entry.get("digest", ""))
        yield Finding(OK, name, f"has {model}, build {self.digest[:12]}")
        yield from self._loaded()
        yield from self._window()

    def _loaded(self) -> Iterator[Finding]:
        try:
            loaded = self._client.loaded(PROBE_SECONDS)
        except OllamaError as error:
            yield Finding(WARNING, self.host.name, f"does not tell what is loaded: {error}")
            return
        entry = next((one for one in loaded if normal(str(one.get("name"))) == normal(self._settings.model)), None)
        if entry is None:
            yield Finding(OK, self.host.name, "the model is not loaded: the first answer waits for that; set"
                                              f" {PREFIX}PRELOAD=true and {PREFIX}KEEP_ALIVE=-1 to have it ready")
            return
        size, on_gpu = entry.get("size") or 0, entry.get("size_vram") or 0
        share = round(100 * on_gpu / size) if size else 0
        if 0 < share < 100:
            yield Finding(WARNING, self.host.name, f"only {share} % of the model is on the GPU, the rest is slow: free"
                                                   f" its memory, lower {PREFIX}NUM_CTX, or take a smaller model")
        else:
            yield Finding(OK, self.host.name, f"the model is loaded, {share} % of it on the GPU, with a window of"
                                              f" {entry.get('context_length', 'unknown')} tokens")

    def _window(self) -> Iterator[Finding]:
        if (asked := self._settings.num_ctx) is None:
            return
        try:
            info = self._client.show(self._settings.model).get("model_info") or {}
        except OllamaError as error:
            yield Finding(WARNING, self.host.name, f"does not tell the model's window: {error}")
            return
        trained = next((value for key, value in info.items() if key.endswith(".context_length")), None)
        if isinstance(trained, int) and asked > trained:
            yield Finding(WARNING, self.host.name, f"{PREFIX}NUM_CTX={asked} is more than the model was made for; set"
                                                   f" {trained} or less")
        else:
            yield Finding(OK, self.host.name, f"{PREFIX}NUM_CTX={asked} fits the model's window of {trained or '?'}")

    def generations(self) -> Iterator[Finding]:
        """A generation of one token, and whether as many run at once as it has slots."""
        slots = self.host.slots or self._settings.parallel
        started = time.monotonic()
        try:
            self._generate(1)
        except OllamaError as error:
            yield Finding(FAULT, self.host.name, f"cannot generate: {error}")
            return
        yield Finding(OK, self.host.name, f"generated a token in {time.monotonic() - started:.2f} s")
        if slots > 1:
            yield self._at_once(slots)

    def _at_once(self, slots: int) -> Finding:
        """Compare ``slots`` with what Ollama runs at once: who waited in it for another did not run beside it."""
        tried = min(slots, AT_ONCE)
        try:
            with ThreadPoolExecutor(tried) as pool:
                waits = list(pool.map(lambda _: self._generate(8), range(tried)))
        except OllamaError as error:
            return Finding(FAULT, self.host.name, f"{tried} generations at once fail: {error}")
        # The first of those that run one after the other does not wait, the second waits for one of them, and so on.
        beside = sum(waited < 0.5 for waited in waits)
        if beside >= tried:
            return Finding(OK, self.host.name, f"takes {tried} generations at once, as {PREFIX}PARALLEL says")
        return Finding(WARNING, self.host.name, f"took {beside} of {tried} generations at once: set"
                                                f" OLLAMA_NUM_PARALLEL={slots} for it, or lower {PREFIX}PARALLEL")

    def _generate(self, tokens: int) -> float:
        """Generate some tokens; returns how long it waited inside Ollama, by the time the generation itself took."""
        chosen = self._settings
        call = ModelCall.of(GENERATE, chosen.model, {"num_predict": tokens, "num_ctx": chosen.num_ctx}, prompt="Hi",
                            truncate=False)
        end = self._client.generate(call, self.digest, chosen.timeout, Cancellation(), lambda pieces: None)
        own = (end.prompt_eval_duration or 0) + (end.eval_duration or 0)
        waited = (end.total_duration or 0) - (end.load_duration or 0) - own
        return waited / own if own else 0.0


def _log_file(path: str) -> Finding:
    if not path:
        return Finding(OK, "log file", "none is set: the log goes to stdout alone")
    place = path if os.path.exists(path) else os.path.dirname(os.path.abspath(path))
    if os.access(place, os.W_OK):
        return Finding(OK, "log file", f"{path} can be written")
    return Finding(WARNING, "log file", f"{path} cannot be written by this user: the log would go to stdout alone;"
                                        f" change its owner, or set {PREFIX}LOG_FILE")


def _port(chosen: Settings) -> Finding:
    bind = chosen.bind
    if bind.startswith("unix:"):
        return Finding(OK, "port", f"the service listens at {bind}")
    try:
        if Server(chosen).send("GET", "/livez", PROBE_SECONDS).json() == {"status": "alive"}:
            return Finding(OK, "port", f"the service runs at {bind}")
    except (requests.RequestException, ValueError):
        pass  # nobody answers, or something else does
    host, _, port = bind.rpartition(":")
    host = host.strip("[]")
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, int(port)))
    except OSError as error:
        return Finding(FAULT, "port", f"{bind} cannot be listened on ({error.strerror}): end what uses it, or set"
                                      f" {PREFIX}BIND")
    return Finding(OK, "port", f"{bind} is free; the service does not run")


def _builds(looks: list[Look], model: str) -> Iterator[Finding]:
    digests = {look.digest for look in looks if look.present}
    if len(digests) > 1:
        yield Finding(FAULT, "builds", f"{model} is not the same on all: pull it everywhere; one made by `ollama"
                                       " create` is equal where its blobs and manifest were copied, to one path")
    elif len(looks) > 1 and digests:
        yield Finding(OK, "builds", f"{model} is the same wherever it is")


def _store(chosen: Settings) -> Finding:
    if chosen.cache_url == "memory://":
        return Finding(OK, "cache", "in the process: nothing is shared and nothing survives a restart")
    path = chosen.cache_url.removeprefix("sqlite:///")
    if path != chosen.cache_url and not os.path.exists(path):
        writable = os.access(os.path.dirname(os.path.abspath(path)), os.W_OK)
        return Finding(OK if writable else FAULT, "shared store",
                       f"{path} will be made" if writable else f"{path} cannot be made by this user")
    return _round_trip(lambda: open_store(chosen.cache_url, chosen.cache_max_entries, chosen.cache_max_bytes))


def _round_trip(connect: Callable[[], Any]) -> Finding:
    try:
        store = connect()
        store.size()  # the first one connects
        started = time.monotonic()
        entries, size = store.size()
        taken = time.monotonic() - started
        store.close()
    except StoreError as error:
        return Finding(FAULT, "shared store", f"cannot be used: {error}; start it, or correct {PREFIX}CACHE_URL")
    return Finding(OK, "shared store", f"{store.name} holds {entries} answers, {size} bytes; a round trip takes"
                                       f" {1000 * taken:.1f} ms")
