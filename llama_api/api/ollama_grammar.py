"""Ollama's API: from the body of a request to a call, and from an answer to records (``server/routes.go``)."""

import re
from dataclasses import dataclass
from datetime import UTC, datetime

import orjson

from ..answer import Answer, Piece
from ..core import EmbeddingReply, Models, Reply
from ..errors import (InvalidRequest, MalformedJSON, ModelNotFound, ModelNotServed, OllamaRefused, PromptTooLong,
                      RemoteModel)
from ..faults import Fault
from ..model_call import CHAT, EMBED, EMBEDDINGS, GENERATE, ModelCall
from ..model_names import normal
from ..ollama import ending_of, numbers_of, record_of
from ..waiting import Wait
from .ollama_fields import (BOOLEAN, FLAG, FORMAT, IMAGE, INPUT, INTEGER, KEEP_ALIVE, MESSAGE, OBJECT, THINKING, TOOL,
                            TOP_LOGPROBS, WORDS, Json, filled, items, parse, read, refuse)
from .ollama_options import LOAD_TIME, OPTIONS
from .parsed_bodies import Parser, parse_afresh

WHOLE = "application/json; charset=utf-8"  # the Content-Type of everything except streams
PASSED_ON = frozenset({400, 404, 501})  # statuses by which Ollama reports a fault of the request
_NAME = re.compile(r"(\w[\w.-]{0,79}/){0,2}\w[\w.-]{0,79}(:\w[\w.-]{0,79})?", re.ASCII)
_MODEL = {"model": WORDS, "keep_alive": KEEP_ALIVE, "options": OPTIONS}
_SPOKEN = {**_MODEL, "stream": BOOLEAN, "format": FORMAT, "think": THINKING, "truncate": BOOLEAN, "shift": BOOLEAN,
           "logprobs": FLAG, "top_logprobs": TOP_LOGPROBS, "_debug_render_only": FLAG}
GENERATE_FIELDS = {**_SPOKEN, "prompt": WORDS, "suffix": WORDS, "system": WORDS, "template": WORDS, "raw": FLAG,
                   "context": items(INTEGER), "images": items(IMAGE)}
CHAT_FIELDS = {**_SPOKEN, "messages": items(MESSAGE), "tools": items(TOOL)}
EMBED_FIELDS = {**_MODEL, "input": INPUT, "truncate": BOOLEAN, "dimensions": filled(INTEGER)}
EMBEDDINGS_FIELDS = {**_MODEL, "prompt": WORDS}
SHOW_FIELDS = {"model": WORDS, "name": WORDS, "verbose": FLAG, "system": WORDS, "template": WORDS,
               "options": filled(OBJECT)}


@dataclass(frozen=True, slots=True)
class OllamaRequest:
    """A parsed request: ``model`` is the configured name, ``name`` the one that the client sent.

    ``call`` is None when the model is only to be loaded. ``num_ctx`` is the requested context window, or 0.
    """

    endpoint: str
    name: str
    model: str
    call: ModelCall | None
    streamed: bool
    num_ctx: int = 0


class OllamaRequests:
    """Reads the bodies of requests. ``num_ctx`` is NUM_CTX. Raises MalformedJSON, InvalidRequest or ModelNotServed.

    A ``parser`` may remember parsed bodies; the window in force is checked each time.
    """

    def __init__(self, models: Models, max_tokens_limit: int, num_ctx: int | None):
        self._models, self._limit, self._num_ctx = models, max_tokens_limit, num_ctx

    def generate(self, body: bytes, parser: Parser[OllamaRequest] = parse_afresh) -> OllamaRequest:
        """Read the body of POST /api/generate."""
        return self._possible(parser(self._generate, body))

    def chat(self, body: bytes, parser: Parser[OllamaRequest] = parse_afresh) -> OllamaRequest:
        """Read the body of POST /api/chat."""
        return self._possible(parser(self._chat, body))

    def _possible(self, asked: OllamaRequest) -> OllamaRequest:
        self._check_window(asked.model, asked.num_ctx)
        return asked

    def _generate(self, body: bytes) -> OllamaRequest:
        fields = read("GenerateRequest", GENERATE_FIELDS, parse(body))
        model = self._model(fields)
        if "raw" in fields and fields.keys() & {"template", "system", "context"}:
            refuse(".raw", "raw mode does not support template, system, or context")
        return self._asked(GENERATE, model, fields, "prompt" in fields)

    def _chat(self, body: bytes) -> OllamaRequest:
        fields = read("ChatRequest", CHAT_FIELDS, parse(body))
        return self._asked(CHAT, self._required_model(fields), fields, "messages" in fields)

    def embed(self, body: bytes) -> tuple[str, list[ModelCall]]:
        """Read the body of POST /api/embed: the model's name as it was sent, and a call for each text."""
        fields = read("EmbedRequest", EMBED_FIELDS, parse(body))
        model, name = self._required_model(fields), fields.pop("model")
        options, texts = self._options_of(model, fields), fields.pop("input", ())
        return name, [ModelCall.of(EMBED, model, options, input=text, **fields) for text in texts]

    def embeddings(self, body: bytes) -> ModelCall | None:
        """Read the body of POST /api/embeddings, the old form: one text, whose vector Ollama does not normalise.

        None when there is no text.
        """
        fields = read("EmbeddingRequest", EMBEDDINGS_FIELDS, parse(body))
        model = self._required_model(fields)
        options = self._options_of(model, fields)
        return ModelCall.of(EMBEDDINGS, model, options, prompt=fields["prompt"]) if "prompt" in fields else None

    def show(self, body: bytes) -> tuple[str, Json]:
        """Read the body of POST /api/show: the configured name of the model, and the other fields."""
        fields = read("ShowRequest", SHOW_FIELDS, parse(body))
        fields.setdefault("model", fields.pop("name", ""))
        model = self._required_model(fields)
        del fields["model"]
        return model, fields

    def _required_model(self, fields: Json) -> str:
        """As ``_model``, for the routes that miss a name; POST /api/generate does not find a model without one."""
        if not fields.get("model", "").strip():
            refuse(".model", "model is required")
        return self._model(fields)

    def _model(self, fields: Json) -> str:
        """The configured name of the model that ``fields`` name."""
        name = fields.get("model", "")
        if name.strip() and not _NAME.fullmatch(name.strip()):
            refuse(".model", "invalid model name")
        if (model := self._models.resolve(name) if name.strip() else None) is None:
            raise ModelNotServed(name, self._models.served)
        return model

    def _asked(self, endpoint: str, model: str, fields: Json, whole: bool) -> OllamaRequest:
        name, streamed = fields.pop("model"), fields.pop("stream", True)
        options = fields.pop("options", {})
        sent = self._options(options) | self._bound(options)
        call = ModelCall.of(endpoint, model, sent, **fields) if whole else None
        streamed = streamed and "_debug_render_only" not in fields
        return OllamaRequest(endpoint, name, model, call, streamed, options.get("num_ctx", 0))

    def _options_of(self, model: str, fields: Json) -> Json:
        """The options of an embedding, taken out of ``fields``."""
        options = fields.pop("options", {})
        self._check_window(model, options.get("num_ctx", 0))
        return self._options(options)

    def _options(self, given: Json) -> Json:
        """The options to send, without load-time options, which are the operator's."""
        return {name: value for name, value in given.items() if name not in LOAD_TIME} | {"num_ctx": self._num_ctx}

    def _check_window(self, model: str, num_ctx: int) -> None:
        """Refuse a larger window than the one in force."""
        window = None if num_ctx <= 0 else self._num_ctx or self._models.window(model)
        if window is not None and num_ctx > window:
            refuse(".options.num_ctx", f"num_ctx {num_ctx} is above the context window in force, {window} tokens;"
                                       " only the operator can change it")

    def _bound(self, given: Json) -> Json:
        """The maximum number of tokens of an answer."""
        wanted = given.get("num_predict", 0)
        if wanted > self._limit:
            refuse(".options.num_predict", f"num_predict {wanted} is above the limit of this server, {self._limit}"
                                           " (LLAMA_API_MAX_TOKENS_LIMIT)")
        return {"num_predict": wanted if wanted > 0 else self._limit}


class OllamaGrammar:
    """The records of one answer to /api/generate or /api/chat."""

    content_type, whole_type = "application/x-ndjson", WHOLE

    def __init__(self, asked: OllamaRequest):
        self._asked = asked

    def whole(self, answer: Answer, reply: Reply, metrics: Json) -> bytes:
        piece = Piece(answer.text, answer.thinking, answer.tool_calls, answer.logprobs)
        return orjson.dumps(self._record(piece, True) | _ending(answer, reply))

    def pieces(self, pieces: list[Piece], reply: Reply) -> bytes:
        return b"".join([self._line(piece) for piece in pieces])

    def waiting(self, wait: Wait) -> bytes:
        return self._line(Piece())

    def end(self, answer: Answer, reply: Reply, metrics: Json) -> bytes:
        return orjson.dumps(self._record(Piece(), True) | _ending(answer, reply)) + b"\n"

    def failed(self, fault: Fault, error: Exception) -> bytes:
        return error_body(status_and_text(fault, error)[1]) + b"\n"

    def loaded(self) -> bytes:
        """The answer to a request that only loads the model."""
        return orjson.dumps(self._record(Piece(), True) | {"done_reason": "load"})

    def _line(self, piece: Piece) -> bytes:
        return orjson.dumps(self._record(piece, False)) + b"\n"

    def _record(self, piece: Piece, done: bool) -> Json:
        created = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        return {"model": self._asked.name, "created_at": created, **record_of(piece, self._asked.endpoint),
                "done": done}


def embedded(name: str, answer: Answer, reply: EmbeddingReply) -> bytes:
    """The body of an answer to /api/embed; ``name`` is that of the model, as it was sent."""
    ending = {"load_duration": 0} | _ending(answer, reply)
    ending.setdefault("total_duration", _nanoseconds(reply))
    return orjson.dumps({"model": name, "embeddings": [numbers_of(vector) for vector in reply.vectors], **{
        told: ending[told] for told in ("total_duration", "load_duration", "prompt_eval_count") if told in ending}})


def embedded_one(answer: Answer, reply: EmbeddingReply) -> bytes:
    """The body of an answer to /api/embeddings."""
    return orjson.dumps({"embedding": numbers_of(reply.vectors[0])})


def _ending(answer: Answer, reply: Reply) -> Json:
    """The members of the last record: on a hit the time is the hit's own, the counts are the stored answer's."""
    ending = ending_of(answer.completion)
    if reply.cached:
        ending = {name: value for name, value in ending.items() if not name.endswith("_duration")}
        ending |= {"total_duration": _nanoseconds(reply), "load_duration": 0}
    return ending


def _nanoseconds(reply: Reply) -> int:
    """The time of the request itself."""
    return max(1, int(reply.timings.inference * 1e9))


def error_body(text: str) -> bytes:
    """The body, or the line, of an error."""
    return orjson.dumps({"error": text})


def status_and_text(fault: Fault, error: Exception) -> tuple[int, str]:
    """The status and the text by which a failure is reported to Ollama's clients."""
    match error:
        case OllamaRefused(status=status, text=text) if status in PASSED_ON:
            return status, text
        case PromptTooLong(text=text):
            return 400, text or fault.detail
        case RemoteModel():
            return 404, fault.detail
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
