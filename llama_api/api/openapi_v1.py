"""OpenAI's API at /v1 in the OpenAPI document, generated from the tables and errors that the door itself uses."""

from collections import defaultdict
from http import HTTPStatus

from werkzeug.exceptions import MethodNotAllowed, NotFound, TooManyRequests

from .. import errors
from ..core import MOST_TEXTS
from ..http import problems
from ..strict_json import Json
from .openai_embeddings import LARGEST
from .openai_errors import LONGEST_WAIT, FieldError, error_object, headers_of, status_of
from .openai_messages import ROLES
from .openai_requests import (CHAT_FIELDS, COMPLETION_FIELDS, COMPLETION_LOGPROBS, COMPLETION_TOKENS, EFFORTS, IGNORED,
                              INTEGERS, NUMBERS, TOP_LOGPROBS)
from .openapi_parts import COUNT, NUMBER, TEXT, array, headers, in_path, nullable, ref
from .schemas import MAX_STOPS

ANSWER = """\
Requests share the cache, the queue and the limits with POST /generate; `Cache-Control` and `Cache-Status` mean the
same. With `"stream": true` they come as server-sent events: `data: <JSON>` and a blank line each, with
`data: [DONE]` at the end. While a caller waits, comments (`: waiting`) are sent. A failure after the first event is
`data: {"error": …}`, and then there is no `[DONE]`."""
EMBEDDED = """\
Each text has its own cache entry: a list is answered from the stored entries and one call to Ollama for the rest.
`Cache-Status` is `hit` when all were stored. `usage` counts the known tokens, so it may be too low: for a call with
several texts Ollama reports only the total, which counts once for each complete set of those texts in the request."""
_EXAMPLES = (
    errors.MalformedJSON("Expecting value at line 1, column 1"), errors.PromptTooLong(9001, 8192),
    FieldError("messages[0].role", "invalid_value", f"must be one of {', '.join(ROLES)}"), errors.UntrustedHost(),
    errors.Unauthorized(), errors.ModelNotServed("gpt-4", ["llama3:8b"]), errors.BodyTimeout(15.0),
    errors.BodyTooLarge(1048576), errors.NotJSON(), TooManyRequests("60 per 1 minute"), Exception(),
    errors.OllamaRefused(400, ""), errors.OllamaBrokeOff(), errors.OllamaUnavailable(), errors.QueueFull(64, 30),
    errors.ModelNotFound("llama3:8b"), errors.GenerationCancelled(), errors.OllamaTimeout(), errors.NotCached(),
    NotFound(), MethodNotAllowed(["OPTIONS", "POST"]))
_OF_BODIES = (errors.MalformedJSON, errors.PromptTooLong, FieldError)
_GENERAL = {"400", "401", "429", "500", "default"}  # of endpoints that do not generate
_HEADERS: dict[str, Json] = {
    "x-should-retry": headers("X-Should-Retry"),
    "Retry-After": {"Retry-After": {"description": "Seconds after which to try again, or to look again.", "schema": {
        "type": "integer", "minimum": 1, "maximum": LONGEST_WAIT}}}}


def _object(required: str, **properties: Json) -> Json:
    return {"type": "object", "required": required.split(), "properties": properties}


def _ref(name: str) -> Json:
    return ref("schemas", name)


def schemas(limit: int) -> dict[str, Json]:
    """The schemas by name; ``limit`` is the largest max_tokens."""
    tool_call = _object("id type function", id=TEXT, type={"const": "function"},
                        function=_object("name arguments", name=TEXT, arguments={
                            **TEXT, "description": "A JSON object as text."}))
    scored = {"token": TEXT, "logprob": NUMBER, "bytes": nullable(array(COUNT))}
    logprobs = nullable(_object("content refusal", refusal={"type": "null"}, content=array(_object(
        "token logprob bytes top_logprobs", **scored, top_logprobs=array(_object("token logprob bytes", **scored))))))
    old = nullable(_object(
        "tokens token_logprobs top_logprobs text_offset", tokens=array(TEXT), text_offset=array(COUNT),
        token_logprobs=array(NUMBER), top_logprobs=nullable(array({"type": "object"}))))
    ended = {"enum": ["stop", "length", "tool_calls"]}
    text_choice = {"index": {"const": 0}, "text": TEXT, "logprobs": old}
    message = _object("role content refusal", role={"const": "assistant"}, content=nullable(TEXT),
                      refusal={"type": "null"}, reasoning=TEXT, tool_calls=array(tool_call))
    delta = {"type": "object", "properties": {
        "role": {"const": "assistant"}, "content": nullable(TEXT), "reasoning": TEXT, "tool_calls": array(_object(
            "index id type function", index=COUNT, **tool_call["properties"]))}}
    return {
        **_requests(limit), **_embeddings(), "OpenAIError": _object("error", error=_object(
            "message type param code", message=TEXT, type=TEXT, param=nullable(TEXT), code=nullable(TEXT))),
        "OpenAIUsage": _object("prompt_tokens completion_tokens total_tokens", prompt_tokens=COUNT,
                               completion_tokens=COUNT, total_tokens=COUNT),
        "OpenAIModel": _object("id object created owned_by", id=TEXT, object={"const": "model"}, created=COUNT,
                               owned_by=TEXT),
        "OpenAIModelList": _object("object data", object={"const": "list"}, data=array(_ref("OpenAIModel"))),
        "ChatCompletion": _answer("chat.completion", _object(
            "index message logprobs finish_reason", index={"const": 0}, message=message, logprobs=logprobs,
            finish_reason=ended)),
        "ChatCompletionChunk": _answer("chat.completion.chunk", _object(
            "index delta logprobs finish_reason", index={"const": 0}, delta=delta, logprobs=logprobs,
            finish_reason=nullable(ended)), streamed=True),
        "Completion": _answer("text_completion", _object(
            "index text logprobs finish_reason", **text_choice, finish_reason=ended)),
        "CompletionChunk": _answer("text_completion", _object(
            "index text logprobs finish_reason", **text_choice, finish_reason=nullable(ended)), streamed=True)}


def _answer(kind: str, choice: Json, streamed: bool = False) -> Json:
    required = "id object created model system_fingerprint choices" + ("" if streamed else " usage")
    return _object(required, id=TEXT, object={"const": kind}, created=COUNT, model=TEXT,
                   system_fingerprint=nullable(TEXT), usage=nullable(_ref("OpenAIUsage")),
                   choices=array(choice, minItems=0 if streamed else 1, maxItems=1))


def _embeddings() -> dict[str, Json]:
    """The schemas of /v1/embeddings."""
    text = {**TEXT, "minLength": 1}
    vector = {"anyOf": [array(NUMBER), {**TEXT, "description": "Little-endian float32 as base64."}]}
    return {
        "EmbeddingRequest": _object(
            "model input", model={**TEXT, "examples": ["nomic-embed-text"]},
            input={"anyOf": [text, array(text, minItems=1, maxItems=MOST_TEXTS)]},
            dimensions=nullable({"type": "integer", "minimum": 1, "maximum": LARGEST}),
            encoding_format=nullable({"enum": ["float", "base64"]})),
        "EmbeddingList": _object(
            "object data model usage", object={"const": "list"}, model=TEXT, data=array(_object(
                "object index embedding", object={"const": "embedding"}, index=COUNT, embedding=vector)),
            usage=_object("prompt_tokens total_tokens", prompt_tokens=COUNT, total_tokens=COUNT))}


def _requests(limit: int) -> dict[str, Json]:
    """The schemas of the bodies; every optional field may be null."""
    tokens = {"type": "integer", "minimum": 1, "maximum": limit}
    fields: dict[str, Json] = {
        **{name: {"type": "number", "minimum": least, "maximum": most, **({} if usual is None else {"default": usual})}
           for name, (least, most, usual) in NUMBERS.items()},
        **{name: {"type": "integer", "minimum": least, "maximum": most} for name, (least, most) in INTEGERS.items()},
        "stop": {"anyOf": [{**TEXT, "minLength": 1}, array({**TEXT, "minLength": 1}, maxItems=MAX_STOPS)]},
        "stream": {"type": "boolean", "default": False}, "max_tokens": tokens, "max_completion_tokens": tokens,
        "stream_options": {"description": "Ignored without `stream`; `include_usage` asks for a chunk of usage."},
        "n": {"const": 1}, "best_of": {"const": 1}, "echo": {"const": False}, "suffix": TEXT,
        "logit_bias": {"type": "object", "maxProperties": 0}, "logprobs": {"type": "boolean", "default": False},
        "top_logprobs": {"type": "integer", "minimum": 0, "maximum": TOP_LOGPROBS},
        "modalities": {"const": ["text"]}, "verbosity": {"const": "medium"},
        "parallel_tool_calls": {"type": "boolean", "default": True}, "tool_choice": {"enum": ["auto", "none"]},
        "reasoning_effort": {"enum": list(EFFORTS)},
        "reasoning": {"type": "object", "properties": {"effort": nullable({"enum": list(EFFORTS)})}},
        "response_format": {"oneOf": [
            _object("type", type={"enum": ["text", "json_object"]}),
            _object("type json_schema", type={"const": "json_schema"}, json_schema=_object(
                "schema", schema={"type": "object"}))]},
        "tools": array(_object("type function", type={"const": "function"}, function=_object(
            "name", name={**TEXT, "minLength": 1}, description=nullable(TEXT),
            parameters=nullable({"type": "object"}))))}
    ignored = {name: {"description": "Ignored: it changes no answer."} for name in sorted(IGNORED)}
    prompt = {**TEXT, "minLength": 1, "examples": ["Why is the sky blue?"]}
    own: dict[str, Json] = {"model": {**TEXT, "examples": ["llama3:8b"]}, "messages": _messages(),
                            "prompt": {"anyOf": [prompt, array(prompt, minItems=1, maxItems=1)]}}
    old = {"logprobs": {"type": "integer", "minimum": 0, "maximum": COMPLETION_LOGPROBS},
           "max_tokens": {**tokens, "default": min(COMPLETION_TOKENS, limit)}}

    def body(names: set[str], required: str, changed: dict[str, Json]) -> Json:
        known = {name: own[name] if name in own else nullable({**fields, **changed}[name]) for name in sorted(names)}
        return {**_object(required, **known, **ignored), "additionalProperties": False}

    return {"ChatCompletionRequest": body(CHAT_FIELDS, "model messages", {}),
            "CompletionRequest": body(COMPLETION_FIELDS, "model prompt", old)}


def _messages() -> Json:
    part = {"type": "object", "required": ["type"], "properties": {
        "type": {"enum": ["text", "image_url", "refusal"]}, "text": TEXT, "refusal": TEXT, "image_url": {
            "description": "A data URL with the image in base64, alone or as `url` of an object."}}}
    message = _object("role", role={"enum": list(ROLES)}, content=nullable({"anyOf": [TEXT, array(part)]}),
                      tool_calls=nullable(array({"type": "object"})), tool_call_id=nullable(TEXT),
                      reasoning=nullable({**TEXT, "description": "The model's thinking, as it was returned."}))
    return {**array(message, minItems=1), "examples": [[{"role": "user", "content": "Why is the sky blue?"}]]}


def operations() -> dict[tuple[str, str], Json]:
    """The requests and responses of each operation, by path and method."""
    model = {"id": "llama3:8b", "object": "model", "created": 1787299200, "owned_by": "library"}
    return {
        ("/v1/chat/completions", "POST"): _generating("ChatCompletion", {
            "model": "llama3:8b", "messages": [{"role": "user", "content": "Why is the sky blue?"}]}),
        ("/v1/completions", "POST"): _generating("Completion", {
            "model": "llama3:8b", "prompt": "Why is the sky blue?", "max_tokens": 100}),
        ("/v1/embeddings", "POST"): _embedding(),
        ("/v1/models", "GET"): _telling("The models, except those that Ollama lacks.", "OpenAIModelList", {
            "object": "list", "data": [model]}),
        ("/v1/models/{model}", "GET"): {**_telling("The model.", "OpenAIModel", model), "parameters": [
            in_path("model", "llama3:8b")]}}


def _generating(kind: str, example: Json) -> Json:
    chunk = {**TEXT, "contentMediaType": "application/json", "contentSchema": {
        "oneOf": [_ref(f"{kind}Chunk"), _ref("OpenAIError")]}}
    chunks = {"anyOf": [TEXT, {"type": "object", "required": ["data"], "properties": {
        "data": {"anyOf": [{"const": "[DONE]"}, chunk]}}}]}
    return {"tags": ["openai"], "description": ANSWER, "parameters": ["Cache-Control"],
            "requestBody": {"required": True, "content": {"application/json": {
                "schema": _ref(f"{kind}Request"), "examples": {
                    "plain": {"value": example}, "stream": {"value": {**example, "stream": True}}}}}},
            "responses": {"200": {
                "description": "The answer: JSON, or a stream of events where `stream` is true.",
                "headers": headers("Cache-Status", "Age"),
                "content": {"application/json": {"schema": _ref(kind)}, "text/event-stream": {"schema": chunks}}}}}


def _embedding() -> Json:
    asked = {"model": "nomic-embed-text", "input": ["Why is the sky blue?", "Hi"]}
    told = {"object": "list", "data": [{"object": "embedding", "index": index, "embedding": vector}
                                       for index, vector in enumerate([[0.6, 0.8], [1.0, 0.0]])],
            "model": "nomic-embed-text", "usage": {"prompt_tokens": 9, "total_tokens": 9}}
    return {"tags": ["openai"], "description": EMBEDDED, "parameters": ["Cache-Control"],
            "requestBody": {"required": True, "content": {"application/json": {
                "schema": _ref("EmbeddingRequest"), "examples": {"plain": {"value": asked}}}}},
            "responses": {"200": {
                "description": "The vectors, in the order of the texts.",
                "headers": headers("Cache-Status", "Age"),
                "content": {"application/json": {"schema": _ref("EmbeddingList"), "example": told}}}}}


def _telling(description: str, schema: str, example: Json) -> Json:
    return {"tags": ["openai"], "responses": {"200": {"description": description, "content": {
        "application/json": {"schema": _ref(schema), "example": example}}}}}


def failures(path: str) -> dict[str, Json]:
    """The error responses at ``path``, by status, with their specific headers."""
    generates = path.endswith(("completions", "embeddings"))
    rows: dict[str, Json] = defaultdict(dict)
    own: dict[str, Json] = defaultdict(dict)
    for error in _EXAMPLES:
        if isinstance(error, _OF_BODIES) and not generates:
            continue
        fault = problems.fault_for(error, "PUT")
        status = "default" if isinstance(error, (NotFound, MethodNotAllowed)) else str(status_of(fault))
        body = error_object(fault, error)
        rows[status][body["error"]["code"]] = {"summary": fault.title, "value": body}
        for name in headers_of(fault, error):
            own[status].update(_HEADERS[name])
    wanted = rows if generates else _GENERAL | ({"404"} if path.endswith("}") else set())
    return {status: {"description": HTTPStatus(int(status)).phrase if status != "default" else "Nothing is there.",
                     "headers": own[status], "content": {"application/json": {
                         "schema": _ref("OpenAIError"), "examples": examples}}}
            for status, examples in rows.items() if status in wanted}
