"""llama.cpp for the embedded Ollama: the model loaded, its parallel slots, and options in the engine's words."""
from __future__ import annotations

import collections
import contextlib
import http.client
import json
import os
import pathlib
import secrets
import threading
from collections.abc import Callable, Generator, Iterator
from typing import Any

try:
    import xllamacpp
except ImportError:
    xllamacpp = None

PIECE = 64  # prompt tokens per call, about 0.5 s: the engine notices a closed connection only when it writes
STOPS = ["<|im_start|>", "<|im_end|>"]
# DefaultOptions in api/types.go; a given option must have the type of its default.
OPTIONS: dict[str, Any] = {
    "num_predict": -1, "temperature": 0.8, "seed": -1, "top_k": 40, "top_p": 0.9, "min_p": 0.0, "typical_p": 1.0,
    "repeat_penalty": 1.0, "repeat_last_n": 64, "presence_penalty": 0.0, "frequency_penalty": 0.0, "num_keep": 4,
    "num_ctx": 4096, "num_batch": 512, "num_gpu": -1, "main_gpu": 0, "num_thread": 0, "draft_num_predict": 0,
    "use_mmap": True, "stop": STOPS}
OPTION_TYPES = {int: "integer", float: "float32", bool: "boolean", list: "array"}
GO_ESCAPES = {ord(char): f"\\u{ord(char):04x}" for char in "<>&\u2028\u2029"}
Gone = Callable[[], bool]


class Refused(Exception):
    """The request ends with this HTTP status and `{"error": text}`."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class ClientGone(Exception):
    """The client closed its connection; nobody would read the answer."""


def to_json(value: Any) -> bytes:
    """Encode as Go's encoder does: compact, raw UTF-8, with <, > and & escaped."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).translate(GO_ESCAPES).encode(errors="replace")


class Engine:
    """llama.cpp with the model loaded, spoken to over a loopback port that only this process has the key of.

    RuntimeError if it cannot be loaded. There is no way back: freed while it generates, it hangs for half a minute.
    """

    def __init__(self, path: pathlib.Path, parallel: int, threads: int | None) -> None:
        if xllamacpp is None:
            raise RuntimeError("xllamacpp is not installed")
        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_ctx, params.n_parallel, params.ctx_shift = OPTIONS["num_ctx"] * parallel, parallel, True
        params.verbosity, params.ui, params.cache_ram_mib = -1, False, 0
        # Its threads wait for each other spinning: with one on every core, any other work makes it 20 times slower.
        threads = threads or max(1, (os.cpu_count() or 2) - 1)
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
        self.key = secrets.token_hex()
        params.api_keys = [self.key]
        self.server = xllamacpp.Server(params)
        self.address = self.server.listening_address.removeprefix("http://")
        props = self.call("/props")
        self.window: int = props["default_generation_settings"]["n_ctx"]
        self.template: str = props["chat_template"]
        self.meta: dict[str, Any] = self.call("/v1/models")["data"][0]["meta"]

    @contextlib.contextmanager
    def request(self, path: str, body: Any = None) -> Iterator[http.client.HTTPResponse]:
        """Open the engine's answer; Refused, with its whole body as the text, if not 200 (llm/llama_server.go)."""
        connection = http.client.HTTPConnection(self.address)
        headers = {"Authorization": f"Bearer {self.key}"}
        try:
            connection.request("GET" if body is None else "POST", path, body and to_json(body), headers)
            response = connection.getresponse()
            if response.status != 200:
                raise Refused(response.status, response.read().decode())
            yield response
        finally:
            connection.close()

    def call(self, path: str, body: Any = None) -> Any:
        with self.request(path, body) as response:
            return json.load(response)

    def tokenize(self, text: str) -> list[int]:
        return self.call("/tokenize", {"content": text, "add_special": True, "parse_special": True})["tokens"]

    def render(self, turns: list[Any]) -> str:
        """Put messages into the model's chat template, which adds a system message of its own if there is none."""
        return self.call("/apply-template", {"messages": turns})["prompt"]

    def complete(self, prompt: list[int], settings: dict[str, Any],
                 gone: Gone) -> Generator[dict[str, Any], None, None]:
        """Yield the engine's chunks, the last one with `stop`; ClientGone, and no more tokens, once `gone()`.

        Unlike Ollama it does not reuse what an earlier prompt left in the cache: that changes the shape of the batches
        and so the last digits of the logits, and greedy answers would not repeat.
        """
        spent, settings = 0.0, settings | {"cache_prompt": False}
        for end in range(PIECE, len(prompt) if len(prompt) < self.window else 0, PIECE):
            piece = self.call("/completion", settings | {"prompt": prompt[:end], "n_predict": 0})
            spent += piece["timings"]["prompt_ms"]
            settings["cache_prompt"] = True
            if gone():
                raise ClientGone
        with self.request("/completion", settings | {"prompt": prompt, "stream": True, "return_tokens": True}) as lines:
            for line in lines:
                if gone():
                    raise ClientGone
                if line.startswith(b"data: "):
                    chunk = json.loads(line.removeprefix(b"data: "))
                    if chunk.get("stop"):
                        chunk["timings"]["prompt_ms"] += spent
                    yield chunk


class Slots:
    """The engine's parallel slots and the unbounded FIFO before them (the semaphore in llm/llama_server.go)."""

    def __init__(self, count: int) -> None:
        self.free, self.changed = list(range(count)), threading.Condition()
        self.waiting: collections.deque[object] = collections.deque()

    @contextlib.contextmanager
    def take(self, gone: Gone) -> Iterator[int]:
        """Wait for a slot, oldest request first, and yield its number; ClientGone leaves the queue."""
        ticket = object()
        with self.changed:
            self.waiting.append(ticket)
            try:
                while not self.free or self.waiting[0] is not ticket:
                    if gone():
                        raise ClientGone
                    self.changed.wait(0.1)
                slot = self.free.pop()
            finally:
                self.waiting.remove(ticket)
                self.changed.notify_all()
        try:
            yield slot
        finally:
            with self.changed:
                self.free.append(slot)
                self.changed.notify_all()


def read_options(given: dict[str, Any], window: int) -> dict[str, Any]:
    """Return what the engine is to do; a wrong type is a 500, an unknown option ignored (FromMap in api/types.go)."""
    options = dict(OPTIONS)
    for key, value in given.items():
        if value is None or key not in OPTIONS:
            continue
        kind = type(OPTIONS[key])
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not (is_number if kind in (int, float) else isinstance(value, kind)):
            raise Refused(500, f'option "{key}" must be of type {OPTION_TYPES[kind]}')
        if kind is list and not all(isinstance(text, str) for text in value):
            raise Refused(500, f'option "{key}" must be of type an array of strings')
        if is_number:
            bound = 2**31 - 1 if kind is int else 1e38  # what the engine's own types hold
            value = kind(max(-bound, min(value, bound)))
        options[key] = value
    limit = 10 * window  # llm/llama_server.go: no answer is unbounded, and neither is 0 here
    wanted = options["num_predict"]
    return options | {"n_predict": wanted if 0 < wanted <= limit else limit, "n_keep": max(0, options["num_keep"])}


def read_format(value: Any) -> dict[str, Any]:
    """Return the engine's setting for a `format` (llm/llama_server.go)."""
    if value in (None, ""):
        return {}
    if value != "json" and not isinstance(value, dict):
        text = to_json(value).decode()
        raise Refused(500, f'invalid format: {text}; expected "json" or a valid JSON Schema object')
    return {"json_schema": {"type": "object"} if value == "json" else value}
