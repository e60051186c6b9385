"""Ollama's API as values: a request's body to what is asked, an answer to records (``server/routes.go``)."""

import re
from dataclasses import dataclass
from datetime import UTC, datetime

import orjson

from ..answer import Answer, Piece
from ..core import Models, Reply
from ..errors import (Fault, InvalidRequest, MalformedJSON, ModelNotFound, ModelNotServed, OllamaRefused,
                      PromptTooLong)
from ..model_call import CHAT, GENERATE, ModelCall
from ..model_names import normal
from ..ollama import ending_of, record_of
from ..waiting import Wait
from .ollama_fields import (BOOLEAN, FLAG, FORMAT, IMAGE, INTEGER, KEEP_ALIVE, MESSAGE, OBJECT, THINKING, TOOL,
                            TOP_LOGPROBS, WORDS, Json, filled, items, parse, read, refuse)
from .ollama_options import LOAD_TIME, OPTIONS

PASSED_ON = frozenset({400, 404, 501})  # statuses of Ollama's that tell what is wrong with a request
_NAME = re.compile(r"(\w[\w.-]{0,79}/){0,2}\w[\w.-]{0,79}(:\w[\w.-]{0,79})?", re.ASCII)
_MODEL = {"model": WORDS, "keep_alive": KEEP_ALIVE, "options": OPTIONS}
_SPOKEN = {**_MODEL, "stream": BOOLEAN, "format": FORMAT, "think": THINKING, "truncate": BOOLEAN, "shift": BOOLEAN,
           "logprobs": FLAG, "top_logprobs": TOP_LOGPROBS, "_debug_render_only": FLAG}
GENERATE_FIELDS = {**_SPOKEN, "prompt": WORDS, "suffix": WORDS, "system": WORDS, "template": WORDS, "raw": FLAG,
                   "context": items(INTEGER), "images": items(IMAGE)}
CHAT_FIELDS = {**_SPOKEN, "messages": items(MESSAGE), "tools": items(TOOL)}
SHOW_FIELDS = {"model": WORDS, "name": WORDS, "verbose": FLAG, "system": WORDS, "template": WORDS,
               "options": filled(OBJECT)}


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request asks: ``model`` is the configured name, ``name`` the one that the client sent.

    ``call`` is None when the model is only to be loaded.
    """

    endpoint: str
    name: str
    model: str
    call: ModelCall | None
    streamed: bool


class Requests:
    """Reads the bodies of requests. ``num_ctx`` is NUM_CTX. Raises MalformedJSON, InvalidRequest or ModelNotServed."""

    def __init__(self, models: Models, max_tokens_limit: int, num_ctx: int | None):
        self._models, self._limit, self._num_ctx = models, max_tokens_limit, num_ctx

    def generate(self, body: bytes) -> Asked:
        """Read the body of POST /api/generate."""
        fields = read("GenerateRequest", GENERATE_FIELDS, parse(body))
        model = self._model(fields)
        if "raw" in fields and fields.keys() & {"template", "system", "context"}:
            refuse(".raw", "raw mode does not support template, system, or context")
        return self._asked(GENERATE, model, fields, "prompt" in fields)

    def chat(self, body: bytes) -> Asked:
        """Read the body of POST /api/chat."""
        fields = read("ChatRequest", CHAT_FIELDS, parse(body))
        if "model" not in fields:
            refuse(".model", "model is required")
        return self._asked(CHAT, self._model(fields), fields, "messages" in fields)

    def show(self, body: bytes) -> tuple[str, Json]:
        """Read the body of POST /api/show: the configured name of the model, and the other fields."""
        fields = read("ShowRequest", SHOW_FIELDS, parse(body))
        name = fields.pop("name", None)
        if not fields.setdefault("model", name):
            refuse(".model", "model is required")
        model = self._model(fields)
        del fields["model"]
        return model, fields

    def _model(self, fields: Json) -> str:
        """The configured name of the model that ``fields`` name."""
        name = fields.get("model", "")
        if name.strip() and not _NAME.fullmatch(name.strip()):
            refuse(".model", "invalid model name")
        if (model := self._models.resolve(name) if name.strip() else None) is None:
            raise ModelNotServed(name, self._models.served)
        return model

    def _asked(self, endpoint: str, model: str, fields: Json, whole: bool) -> Asked:
        name, streamed = fields.pop("model"), fields.pop("stream", True)
        options = self._options(model, fields.pop("options", {}))
        call = ModelCall.of(endpoint, model, options, **fields) if whole else None
        return Asked(endpoint, name, model, call, streamed and "_debug_render_only" not in fields)

    def _options(self, model: str, given: Json) -> Json:
        """The options as they are sent: the operator's stay the operator's, and every answer has a bound."""
        wanted = given.get("num_predict", 0)
        if wanted > self._limit:
            refuse(".options.num_predict", f"num_predict {wanted} is above the limit of this server, {self._limit}"
                                           " (LLAMA_API_MAX_TOKENS_LIMIT)")
        if (size := given.get("num_ctx", 0)) > 0:
            window = self._num_ctx or self._models.window(model)
            if window is not None and size > window:
                refuse(".options.num_ctx", f"num_ctx {size} is above the context window in force, {window} tokens;"
                                           " only the operator can change it")
        sent = {option: value for option, value in given.items() if option not in LOAD_TIME}
        return sent | {"num_predict": wanted if wanted > 0 else self._limit, "num_ctx": self._num_ctx}


class OllamaGrammar:
    """The records of one answer to /api/generate or /api/chat."""

    content_type = "application/x-ndjson"

    def __init__(self, asked: Asked):
        self._asked = asked

    def whole(self, answer: Answer, reply: Reply, figures: Json) -> bytes:
        piece = Piece(answer.text, answer.thinking, answer.tool_calls, answer.logprobs)
        return orjson.dumps(self._record(piece, True) | _ending(answer, reply))

    def pieces(self, pieces: list[Piece]) -> bytes:
        return b"".join([orjson.dumps(self._record(piece, False)) + b"\n" for piece in pieces])

    def waiting(self, wait: Wait) -> bytes:
        return self.pieces([Piece()])

    def end(self, answer: Answer, reply: Reply, figures: Json) -> bytes:
        return orjson.dumps(self._record(Piece(), True) | _ending(answer, reply)) + b"\n"

    def failed(self, fault: Fault, error: Exception) -> bytes:
        return error_body(told_of(fault, error)[1]) + b"\n"

    def loaded(self) -> bytes:
        """The answer to who only wanted the model loaded."""
        return orjson.dumps(self._record(Piece(), True) | {"done_reason": "load"})

    def _record(self, piece: Piece, done: bool) -> Json:
        created = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        return {"model": self._asked.name, "created_at": created, **record_of(piece, self._asked.endpoint),
                "done": done}


def _ending(answer: Answer, reply: Reply) -> Json:
    """The members of the last record: on a hit the time is the hit's own, the counts are the stored answer's."""
    ending = ending_of(answer.completion)
    if reply.cached:
        ending = {name: value for name, value in ending.items() if not name.endswith("_duration")}
        ending |= {"total_duration": max(1, int(reply.figures.inference * 1e9)), "load_duration": 0}
    return ending


def error_body(text: str) -> bytes:
    """The body, or the line, of an error."""
    return orjson.dumps({"error": text})


def told_of(fault: Fault, error: Exception) -> tuple[int, str]:
    """The status and the text that Ollama's clients are given of a failure."""
    match error:
        case OllamaRefused(status=status, text=text) if status in PASSED_ON:
            return status, text
        case PromptTooLong(text=text):
            return 400, text or fault.detail
        case ModelNotFound(model=model, text=text):
            return 404, text or f"model '{model}' not found"
        case ModelNotServed(name=name):
            return 404, f"model '{name}' not found"
        case InvalidRequest(errors=errors):
            return 400, next(iter(errors.values()))[0]
        case MalformedJSON():
            return fault.status, str(error.args[0])
        case _:
            return fault.status, fault.detail


def tags_of(inventory: list[Json], aliases: list[tuple[str, str]]) -> Json:
    """The body of /api/tags: each model as Ollama lists it, followed by its aliases."""
    models = []
    for entry in inventory:
        models += [entry, *(entry | {"name": alias, "model": alias} for alias, model in aliases
                            if normal(model) == normal(entry["name"]))]
    return {"models": models}
