"""The routes: each takes a request and returns one object, or a stream of them (server/routes.go)."""
from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Generator
from typing import Any

from . import fields, generation
from .errors import ClientGone, Gone, Refused
from .generation import Piece, Prompt
from .go_json import rfc3339
from .model import Model, normal
from .options import engine_settings

NOT_PULLED = 'model "{sent}" not found, try pulling it first'
Record = dict[str, Any]
Reply = Record | Generator[Record, None, None]


@dataclasses.dataclass
class Call:
    """One request as received."""

    model: Model
    body: bytes
    arrived: int  # on the monotonic clock, ns
    gone: Gone

    def read(self, kind: str, nameless: tuple[int, str] = (400, "model is required"),
             unknown: str = "model '{sent}' not found") -> dict[str, Any]:
        """Decode the body; Refused unless it names the model."""
        request = fields.read(self.body, kind)
        sent = request.get("model") or request.get("name", "")
        if not sent.strip():
            raise Refused(*nameless)
        if (name := normal(sent)) != self.model.name:
            raise Refused(404, unknown.format(sent=sent, name=name))
        return request


def version(call: Call) -> Record:
    """Return the version of Ollama that this imitates, marked as embedded."""
    return {"version": "0.33.0+embedded"}


def tags(call: Call) -> Record:
    """List the one model."""
    return {"models": [call.model.tag()]}


def ps(call: Call) -> Record:
    """List the model if it is reported as loaded."""
    return {"models": call.model.running()}


def show(call: Call) -> Record:
    """Describe the model; older clients name it in `name`."""
    call.read("ShowRequest", unknown="model '{name}' not found")
    return call.model.shown()


def generate(call: Call) -> Reply:
    """Answer a prompt, preceded by the `context` of an earlier answer; `raw` skips the template."""
    request = call.read("GenerateRequest", (404, "model '' not found"))
    raw, text, context = request.get("raw", False), request.get("prompt", ""), request.get("context", [])
    if raw and (request.get("system") or request.get("template") or context):
        raise Refused(400, "raw mode does not support template, system, or context")
    _require_able(call.model, request)
    if text and not raw:
        turns = [{"role": "system", "content": request["system"]}] if request.get("system") else []
        text = call.model.engine.render([*turns, {"role": "user", "content": text}])
    return _respond(call, request, text, context, lambda piece: {"response": piece}, with_context=not raw)


def chat(call: Call) -> Reply:
    """Answer a chat, or continue its last message if that is the assistant's."""
    request = call.read("ChatRequest")
    _require_able(call.model, request)
    messages, text = request.get("messages", []), ""
    if messages:
        if images := [image for message in messages for image in message.pop("images")]:
            call.model.engine.look_at(images)
        text = generation.render_chat(call.model.engine, messages, request.get("truncate", True))

    def wrap(piece: str) -> Record:
        return {"message": {"role": "assistant", "content": piece}}

    return _respond(call, request, text, [], wrap, with_context=False)


def embed(call: Call) -> Record:
    """Embed a text or a list of them."""
    request = call.read("EmbedRequest", unknown=NOT_PULLED)
    given = request.get("input", [])
    texts = given if isinstance(given, list) else [given] if given != "" else []
    if not all(isinstance(text, str) for text in texts):
        raise Refused(400, "invalid input type")
    prompts = [_embeddable(call.model, text, request.get("truncate", True)) for text in texts]
    loaded = _load(call, request)
    return {"model": request["model"], "embeddings": _vectors(call, request, prompts),
            "total_duration": time.monotonic_ns() - call.arrived, "load_duration": loaded,
            "prompt_eval_count": sum(map(len, prompts))}


def embeddings(call: Call) -> Record:
    """Embed one text, in the old form."""
    request = call.read("EmbeddingRequest", unknown=NOT_PULLED)
    text = request.get("prompt", "")
    prompts = [_embeddable(call.model, text, may_cut=True)] if text else []
    _load(call, request)
    vectors = _vectors(call, request, prompts)
    return {"embedding": vectors[0] if vectors else []}


def _require_able(model: Model, request: dict[str, Any]) -> None:
    """Refused if a request needs a feature that the model or this stand-in lacks."""
    for key, feature in (("suffix", "insert"), ("tools", "tools")):
        if request.get(key):
            raise Refused(400, f"registry.ollama.ai/library/{model.name} does not support {feature}")
    for key, feature in (("think", "thinking"), ("template", "template")):
        if request.get(key):
            raise Refused(400, f'"{request["model"]}" does not support {feature}')
    if request.get("images"):
        model.engine.look_at(request["images"])


def _load(call: Call, request: dict[str, Any]) -> int:
    """Count the model as used, and return how long that took, in ns."""
    call.model.touch(request.get("keep_alive"))
    return time.monotonic_ns() - call.arrived


def _respond(call: Call, request: dict[str, Any], text: str, context: list[int], wrap: Callable[[str], Record],
             with_context: bool) -> Reply:
    """Answer a text; load or unload the model if it is empty."""
    model = call.model
    settings = engine_settings(request, model.engine.window)
    _load(call, request)

    def record(piece: Piece) -> Record:
        told = {"logprobs": piece.logprobs} if piece.logprobs else {}
        return {"model": request["model"], "created_at": rfc3339(time.time_ns()), **wrap(piece.text),
                "done": bool(piece.end), **piece.end, **told}

    if not text:
        return record(Piece(end={"done_reason": "unload" if request.get("keep_alive") == 0 else "load"}))
    if request.get("_debug_render_only"):
        return record(Piece()) | {"_debug_info": {"rendered_template": text}}
    prompt = Prompt(context + model.engine.tokenize(text), settings, request.get("top_logprobs", 0), with_context,
                    request.get("keep_alive"))
    prompt.fit(model.engine.window, request.get("shift", True), request.get("truncate", True))
    parts = generation.pieces(model, prompt, call.arrived, call.gone)
    return _stream(parts, record) if request.get("stream", True) else record(generation.whole(parts))


def _stream(parts: Generator[Piece, None, None],
            record: Callable[[Piece], Record]) -> Generator[Record, None, None]:
    """Yield each piece as a record; closing this stops the generation."""
    with contextlib.closing(parts):
        yield from map(record, parts)


def _embeddable(model: Model, text: str, may_cut: bool) -> list[int]:
    """Return the tokens of a text to embed, cut to the window if that is allowed."""
    tokens = model.engine.tokenize(text)
    if len(tokens) > model.engine.embedding_window and not may_cut:
        raise Refused(400, "the input length exceeds the context length")
    return tokens[:model.engine.embedding_window]


def _vectors(call: Call, request: dict[str, Any], prompts: list[list[int]]) -> list[list[float]]:
    """Embed texts one by one; `dimensions` shortens each vector and scales it to length 1 again."""
    vectors, dimensions = [], request.get("dimensions", 0)
    with call.model.use(request.get("keep_alive"), call.gone):
        for tokens in prompts:
            if call.gone():
                raise ClientGone
            vector = call.model.engine.embed(tokens)
            if 0 < dimensions < len(vector):
                length = math.hypot(*vector[:dimensions]) or 1.0
                vector = [value / length for value in vector[:dimensions]]
            vectors.append(vector)
    return vectors


ROUTES: dict[str, tuple[str, Callable[[Call], Reply]]] = {
    "/api/version": ("GET HEAD", version), "/api/tags": ("GET HEAD", tags), "/api/ps": ("GET", ps),
    "/api/show": ("POST", show), "/api/generate": ("POST", generate), "/api/chat": ("POST", chat),
    "/api/embed": ("POST", embed), "/api/embeddings": ("POST", embeddings)}
