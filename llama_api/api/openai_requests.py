"""Bodies of requests to OpenAI's API, converted to calls of Ollama.

Every field is honoured, rejected by name, or ignored because it changes nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..core import Models
from ..errors import ModelNotServed
from ..model_call import CHAT, GENERATE, ModelCall
from ..strict_json import parse_object
from .openai_embeddings import AskedVectors, read_embeddings
from .openai_errors import NotSupported
from .openai_fields import RequestObject
from .openai_messages import Needs, read_messages, read_tools
from .parsed_bodies import Parser, parse_afresh
from .schemas import MAX_STOPS

COMPLETION_TOKENS = 16  # of /v1/completions, when a request has no limit
# Ollama's options: their bounds, and the value to send when a request has none.
NUMBERS = {"temperature": (0, 2, 1.0), "top_p": (0, 1, 1.0), "frequency_penalty": (-2, 2, 0.0),
           "presence_penalty": (-2, 2, 0.0), "repeat_penalty": (0, 2, None), "min_p": (0, 1, None)}
INTEGERS = {"seed": (0, 2 ** 31 - 1), "top_k": (1, 1000)}
TOP_LOGPROBS, COMPLETION_LOGPROBS, SAMPLES = 20, 5, 128  # at most
SHARED = {*NUMBERS, *INTEGERS, "stop", "model", "stream", "stream_options", "max_tokens", "n", "logit_bias", "logprobs"}
CHAT_FIELDS = SHARED | {
    "messages", "max_completion_tokens", "response_format", "tools", "tool_choice", "parallel_tool_calls",
    "top_logprobs", "reasoning_effort", "reasoning", "modalities", "verbosity"}
COMPLETION_FIELDS = SHARED | {"prompt", "suffix", "echo", "best_of"}
IGNORED = frozenset({  # they never change an answer
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
    "prompt_cache_options", "prediction"})
_OPERATORS = "is for the operator of this service to set, not for a request"
REFUSED = {"functions": "is deprecated: use tools", "function_call": "is deprecated: use tool_choice",
           "audio": "is not supported: answers are text", "web_search_options": "is not supported",
           "moderation": "is not supported", "think": "is Ollama's own: use reasoning_effort",
           **dict.fromkeys(("num_ctx", "keep_alive", "options", "raw", "template"), _OPERATORS)}
EFFORTS: dict[str, bool | str] = {"none": False, "minimal": "low", "low": "low", "medium": "medium", "high": "high",
                                  "max": "max", "xhigh": "max", "ultra": "max"}


@dataclass(frozen=True, slots=True)
class OpenAIRequest:
    """A parsed request: the call, the abilities that it requires, and the form of the answer.

    ``needs`` maps an ability to the path of the field that requires it. ``call_without_think`` is the call to
    send instead to a model that does not think. ``usage`` asks for a stream's last chunk, ``one_call`` for one tool
    call at most.
    """

    call: ModelCall
    needs: Mapping[str, str]
    call_without_think: ModelCall | None = None
    streamed: bool = False
    usage: bool = False
    one_call: bool = False


class OpenAIRequests:
    """Reads bodies. Raises MalformedJSON, FieldError or ModelNotServed.

    A ``parser`` may remember parsed bodies; the model's abilities are checked each time.
    """

    def __init__(self, models: Models, max_tokens_limit: int = 8192, num_ctx: int | None = None):
        self._models, self._limit, self._num_ctx = models, max_tokens_limit, num_ctx

    def chat(self, body: bytes, parser: Parser[OpenAIRequest] = parse_afresh) -> OpenAIRequest:
        """Read a body of /v1/chat/completions."""
        return self._possible(parser(self._chat, body))

    def completion(self, body: bytes, parser: Parser[OpenAIRequest] = parse_afresh) -> OpenAIRequest:
        """Read a body of /v1/completions."""
        return self._possible(parser(self._completion, body))

    def embeddings(self, body: bytes) -> AskedVectors:
        """Read a body of /v1/embeddings."""
        return read_embeddings(body, self._models, self._num_ctx)

    def _possible(self, asked: OpenAIRequest) -> OpenAIRequest:
        """``asked`` adapted to the abilities of its model. Raises NotSupported."""
        model = asked.call.model
        for ability, param in asked.needs.items():
            if not self._models.can(model, ability):
                raise NotSupported(param, model, ability)
        if asked.call_without_think is not None and not self._models.can(model, "thinking"):
            return replace(asked, call=asked.call_without_think)
        return asked

    def _chat(self, body: bytes) -> OpenAIRequest:
        request = RequestObject(parse_object(body))
        model = self._model(request, CHAT_FIELDS)
        needs: Needs = {}
        for name, value in (("modalities", ["text"]), ("verbosity", "medium")):
            request.require_constant(name, value)
        limits = (request.integer("max_completion_tokens", 1, self._limit), self._max_tokens(request))
        fields: dict[str, Any] = {
            "options": self._options(request, limits[0] or limits[1] or self._limit), "truncate": False,
            "messages": read_messages(request, needs), "tools": read_tools(request, needs),
            "format": _format(request), **_chat_logprobs(request)}
        think = _think(request, needs)
        call = ModelCall.of(CHAT, model, think=think, **fields)
        streamed, usage = _stream(request)
        request.boolean("parallel_tool_calls")
        return OpenAIRequest(call, needs, ModelCall.of(CHAT, model, **fields) if think is False else None, streamed,
                             usage, one_call=request.get("parallel_tool_calls") is False)

    def _completion(self, body: bytes) -> OpenAIRequest:
        request = RequestObject(parse_object(body))
        model = self._model(request, COMPLETION_FIELDS)
        request.require_constant("echo", False)
        request.require_constant("best_of", 1)
        needs: Needs = {}
        if suffix := request.text("suffix"):
            needs["insert"] = "suffix"
        limit, logprobs = self._max_tokens(request), request.integer("logprobs", 0, COMPLETION_LOGPROBS)
        call = ModelCall.of(
            GENERATE, model, self._options(request, limit or min(COMPLETION_TOKENS, self._limit)),
            prompt=_prompt(request), suffix=suffix or None, truncate=False,
            logprobs=None if logprobs is None else True, top_logprobs=logprobs or None)
        return OpenAIRequest(call, needs, None, *_stream(request))

    def _model(self, request: RequestObject, fields: set[str]) -> str:
        """The model that is asked, once it is sure that the request has no fields but known ones."""
        name = request.required_text("model")
        if (model := self._models.resolve(name)) is None:
            raise ModelNotServed(name, self._models.served)
        for field, value in request.values.items():
            if field in REFUSED and value is not None:
                raise request.wrong(field, "unsupported_parameter", REFUSED[field])
            if field not in fields and field not in IGNORED and field not in REFUSED:
                raise request.wrong(field, "unknown_parameter", "is not a field of this request")
        if (request.integer("n", 1, SAMPLES) or 1) > 1:
            raise request.wrong("n", "unsupported_value", "must be 1: each further sample is a request with its seed")
        if request.object("logit_bias"):
            raise request.wrong("logit_bias", "unsupported_value", "must be empty: Ollama knows no such bias")
        return model

    def _max_tokens(self, request: RequestObject) -> int | None:
        return request.integer("max_tokens", 1, self._limit)

    def _options(self, request: RequestObject, num_predict: int) -> dict[str, Any]:
        """Ollama's options with their effective values, OpenAI's defaults among them."""
        return {"num_predict": num_predict, "num_ctx": self._num_ctx, "stop": request.texts("stop", MAX_STOPS) or None,
                **{name: request.number(name, *bounds) for name, bounds in NUMBERS.items()},
                **{name: request.integer(name, *bounds) for name, bounds in INTEGERS.items()}}


def _stream(request: RequestObject) -> tuple[bool, bool]:
    """Whether to stream, and whether with a chunk of usage."""
    if not request.boolean("stream"):
        return False, False
    if request.get("stream_options") is None:
        return True, False
    return True, RequestObject(request.get("stream_options"), "stream_options").boolean("include_usage")


def _prompt(request: RequestObject) -> str:
    """A string, or a list of exactly one, which is what LangChain sends."""
    value = request.require("prompt")
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str):
        request = RequestObject({"prompt": value[0]})
    elif not isinstance(value, str):
        raise request.wrong("prompt", "unsupported_value" if isinstance(value, list) else "invalid_type",
                            "must be one text, or a list of one: lists of texts and of tokens are not supported")
    return request.name("prompt")


def _format(request: RequestObject) -> Any:
    """Ollama's ``format``: none, ``json`` or a schema."""
    if request.get("response_format") is None:
        return None
    chosen = RequestObject(request.get("response_format"), "response_format")
    kind = chosen.required_text("type")
    if kind == "json_schema":
        schema = RequestObject(chosen.require("json_schema"), chosen.path("json_schema"))
        schema.require("schema")
        if (found := schema.object("schema")) is None:
            raise schema.wrong("schema", "invalid_type", "must be an object")
        return found
    if kind not in ("text", "json_object"):
        raise chosen.wrong("type", "invalid_value", "must be text, json_object or json_schema")
    return "json" if kind == "json_object" else None


def _chat_logprobs(request: RequestObject) -> dict[str, Any]:
    wanted, top = request.boolean("logprobs"), request.integer("top_logprobs", 0, TOP_LOGPROBS)
    if top is not None and not wanted:
        raise request.wrong("top_logprobs", "invalid_value", "needs logprobs to be true")
    return {"logprobs": wanted or None, "top_logprobs": top or None}


def _think(request: RequestObject, needs: Needs) -> bool | str | None:
    """Ollama's ``think``; the ability is required only if thinking is requested."""
    holders = [(request, "reasoning_effort")]
    if request.get("reasoning") is not None:
        reasoning = RequestObject(request.get("reasoning"), "reasoning")
        for key, value in reasoning.values.items():
            if key != "effort" and value is not None:
                raise reasoning.wrong(key, "unsupported_parameter", "is not supported: only effort is")
        holders.insert(0, (reasoning, "effort"))  # it takes precedence
    given = [(holder, name, effort) for holder, name in holders if (effort := holder.text(name)) is not None]
    for holder, name, effort in given:
        if effort not in EFFORTS:
            raise holder.wrong(name, "invalid_value", f"must be one of {', '.join(EFFORTS)}")
    if not given:
        return None
    holder, name, effort = given[0]
    if EFFORTS[effort]:
        needs["thinking"] = holder.path(name)
    return EFFORTS[effort]
