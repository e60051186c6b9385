"""The engine: llama.cpp with the model loaded, called as Ollama calls its llama-server."""
from __future__ import annotations

import contextlib
import http.client
import json
import os
import pathlib
import secrets
import threading
from collections.abc import Generator, Iterator
from typing import Any

from . import go_json
from .errors import ClientGone, Gone, Refused
from .options import OPTIONS

try:
    import xllamacpp
except ImportError:
    xllamacpp = None

PIECE = 64  # prompt tokens per call, about 0.5 s: the engine notices a closed connection only when it writes
NOT_JSON = "X"  # no JSON value begins with it
BAD_SCHEMA = {"error": {"code": 400, "type": "invalid_request_error",
                        "message": "Failed to initialize samplers: failed to parse grammar"}}


class Engine:
    """llama.cpp with the model loaded, on a loopback port whose key only this process has.

    RuntimeError if it cannot be loaded. It is never freed: doing so during a generation hangs for half a minute.
    """

    def __init__(self, path: pathlib.Path, parallel: int, threads: int | None) -> None:
        if xllamacpp is None:
            raise RuntimeError("xllamacpp is not installed")
        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_ctx, params.n_parallel, params.ctx_shift = OPTIONS["num_ctx"] * parallel, parallel, True
        params.embedding, params.pooling_type = True, xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
        params.verbosity, params.ui, params.cache_ram_mib = -1, False, 0
        # Its threads spin while they wait for each other: with one per core, any other load makes it 20 times slower.
        threads = threads or max(1, (os.cpu_count() or 2) - 1)
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
        self.key = secrets.token_hex()
        params.api_keys = [self.key]
        self.server = xllamacpp.Server(params)
        self.address = self.server.listening_address.removeprefix("http://")
        props = self.call("/props")
        self.window: int = props["default_generation_settings"]["n_ctx"]
        self.embedding_window: int = params.n_ubatch  # a text is pooled in one batch
        self.template: str = props["chat_template"]
        self.meta: dict[str, Any] = self.call("/v1/models")["data"][0]["meta"]
        self.embedding = threading.Lock()

    @contextlib.contextmanager
    def request(self, path: str, body: Any = None) -> Iterator[http.client.HTTPResponse]:
        """Open the engine's response; Refused with its whole body if it is not a 200 (llm/llama_server.go)."""
        connection = http.client.HTTPConnection(self.address)
        headers = {"Authorization": f"Bearer {self.key}"}
        try:
            connection.request("GET" if body is None else "POST", path, body and go_json.encode(body), headers)
            response = connection.getresponse()
            if response.status != 200:
                raise Refused(response.status, response.read().decode())
            yield response
        finally:
            connection.close()

    def call(self, path: str, body: Any = None) -> Any:
        """Return the JSON of the engine's whole response; Refused if it is not a 200."""
        with self.request(path, body) as response:
            return json.load(response)

    def tokenize(self, text: str) -> list[int]:
        """Return the tokens of a text, including those that start every prompt."""
        return self.call("/tokenize", {"content": text, "add_special": True, "parse_special": True})["tokens"]

    def render(self, turns: list[dict[str, Any]]) -> str:
        """Render messages by the model's chat template, which adds its own system message if there is none.

        A last message of the assistant is left open so that the answer continues it. An empty one is dropped: the
        template would then omit the header of the answer.
        """
        if turns[-1] == {"role": "assistant", "content": ""}:
            turns = turns[:-1]
        return self.call("/apply-template", {"messages": turns})["prompt"]

    def look_at(self, images: list[str]) -> None:
        """Send base64 images to the engine, which refuses them in the words that Ollama would pass on."""
        self.call("/completion", {"prompt": {"prompt_string": "", "multimodal_data": images}, "n_predict": 0})

    def embed(self, tokens: list[int]) -> list[float]:
        """Return the mean of the model's last states over a text, of length 1; Refused with the engine's message.

        One text at a time: another one in the same batch would change the last digits.
        """
        try:
            with self.embedding:
                return self.call("/v1/embeddings", {"input": tokens})["data"][0]["embedding"]
        except Refused as error:
            raise Refused(error.status, json.loads(str(error))["error"]["message"]) from error

    def require_binding(self, settings: dict[str, Any]) -> None:
        """Refused if the settings have a schema that would not constrain the answer: the engine ignores an invalid one.

        A token that cannot start JSON gets so large a bias that it is generated unless the schema forbids it.
        """
        if "json_schema" in settings:
            token = self.tokenize(NOT_JSON)[-1]
            probe = {key: settings[key] for key in ("json_schema", "id_slot")} | {
                "prompt": [token], "n_predict": 1, "temperature": 0, "logit_bias": [[token, 1000.0]]}
            if self.call("/completion", probe)["content"] == NOT_JSON:
                raise Refused(400, go_json.encode(BAD_SCHEMA).decode())

    def complete(self, prompt: list[int], settings: dict[str, Any],
                 gone: Gone) -> Generator[dict[str, Any], None, None]:
        """Yield the engine's chunks, the last one with `stop`; ClientGone ends the generation once `gone()`.

        Unlike Ollama, it does not reuse the cache of an earlier prompt: that changes the shape of the batches and so
        the last digits of the logits, and greedy answers would not be repeatable.
        """
        spent, settings = 0.0, settings | {"cache_prompt": False}
        self.require_binding(settings)
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
