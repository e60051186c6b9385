"""Ollama's API in the OpenAPI document: requests by the fields that are read, errors in its format."""

from collections import defaultdict
from copy import deepcopy
from http import HTTPStatus

from werkzeug.exceptions import Forbidden, MethodNotAllowed, NotFound, TooManyRequests

from .. import errors
from ..http import problems
from ..strict_json import Json
from .ollama import PREFIX, REFUSED, REFUSED_METHODS
from .ollama_fields import schema_of
from .ollama_grammar import CHAT_FIELDS, EMBED_FIELDS, EMBEDDINGS_FIELDS, GENERATE_FIELDS, SHOW_FIELDS, status_and_text
from .openapi_parts import COUNT, NUMBER, TEXT, array, headers, in_path, ref

SPOKEN = """\
As in Ollama, plus the cache, the queue and the limits of this service: `Cache-Control` is honoured and `Cache-Status`
says what the cache did. `keep_alive` and load-time options are set by the operator, so they are ignored here. `num_ctx`
may not exceed the context window in force, nor `num_predict` LLAMA_API_MAX_TOKENS_LIMIT; `stop` is added to the model's
own stops. Field names are case-insensitive, unknown ones are ignored, and the `Content-Type` is not checked.

Without `"stream": false` the answer is NDJSON, one record per line, the last one with `"done": true`. A failure after
the first record is a line `{"error": "text"}`, after which nothing comes."""

_POSTED = {PREFIX + name for name in ("generate", "chat", "show", "embed", "embeddings")}
_ASKING = {PREFIX + "ps"}  # Ollama is asked at once
_ERROR = ref("schemas", "OllamaError")
_EXAMPLES = (
    errors.MalformedJSON("missing request body"), errors.OllamaRefused(400, '"llama3:8b" does not support thinking'),
    errors.InvalidRequest({"options.seed": ['option "seed" must be of type integer']}), errors.UntrustedHost(),
    errors.Unauthorized(), Forbidden("pull would change the Ollama server; ask its operator"),
    errors.ModelNotServed("llama4", ["llama3:8b"]), errors.BodyTimeout(15.0), errors.BodyTooLarge(1048576),
    errors.NotJSON(), TooManyRequests("60 per 1 minute"), Exception(), errors.OllamaRefused(501, "not supported"),
    errors.OllamaBrokeOff(), errors.OllamaUnavailable(), errors.QueueFull(64, 30), errors.GenerationCancelled(),
    errors.OllamaTimeout(), errors.NotCached(), NotFound(), MethodNotAllowed(["OPTIONS", "POST"]))
_OF_BODIES = (errors.MalformedJSON, errors.OllamaRefused, errors.InvalidRequest)
EMBEDDED = """\
Each text has its own cache entry: a list is answered from the stored entries and one call to Ollama for the rest.
`Cache-Status`, sent if there are texts, is `hit` when all were stored. `prompt_eval_count` is present only where it is
exact, because Ollama reports only the total for the texts of one call."""
_EMBEDDER = "nomic-embed-text"
_VECTOR: Json = array(NUMBER)
_EXAMPLE = {"model": "llama3:8b", "created_at": "2026-08-21T10:00:00.2Z"}
_FIGURES = {"total_duration": 910000000, "load_duration": 31000000, "prompt_eval_count": 11,
            "prompt_eval_duration": 90000000, "eval_count": 3, "eval_duration": 60000000}
_SKY = "Why is the sky blue?"
_MEMBERS: Json = {
    "model": TEXT, "created_at": {"type": "string", "format": "date-time"}, "done": {"type": "boolean"},
    "done_reason": {"enum": ["stop", "length", "load"]},
    "context": array({"type": "integer"}),
    **{name: COUNT for name in (*_FIGURES, "prompt_eval_cached_count")},
    "logprobs": array({"type": "object"}), "_debug_info": {"type": "object"}}
_SAID = {"thinking": TEXT, "tool_calls": array({"type": "object"})}
_MODELS = {"type": "object", "required": ["models"], "properties": {
    "models": array({"type": "object"})}}
_VERSION = {"type": "object", "required": ["version"], "properties": {"version": TEXT}}


def _record(name: str, schema: Json, extra: Json) -> Json:
    return {"type": "object", "required": ["model", "created_at", "done", name],
            "properties": {**_MEMBERS, name: schema, **extra}}


def schemas(limit: int) -> dict[str, Json]:
    """The schemas by name; ``limit`` is the largest num_predict."""
    requests = deepcopy({"Generate": schema_of(GENERATE_FIELDS), "Chat": schema_of(CHAT_FIELDS)})
    for request in requests.values():
        request["required"] = ["model"]
        request["properties"]["options"]["anyOf"][0]["properties"]["num_predict"] = {
            "type": ["integer", "null"], "maximum": limit}
    message = {"type": "object", "required": ["role", "content"], "properties": {
        "role": {"const": "assistant"}, "content": TEXT, **_SAID}}
    return {
        **{f"Ollama{kind}Request": request for kind, request in requests.items()},
        "OllamaShowRequest": schema_of(SHOW_FIELDS), "OllamaEmbedRequest": schema_of(EMBED_FIELDS),
        "OllamaEmbeddingRequest": schema_of(EMBEDDINGS_FIELDS),
        "OllamaVectors": {"type": "object", "required": ["model", "embeddings"], "properties": {
            "model": TEXT, "embeddings": array(_VECTOR),
            **{name: _MEMBERS[name] for name in ("total_duration", "load_duration", "prompt_eval_count")}}},
        "OllamaGenerateRecord": _record("response", TEXT, _SAID),
        "OllamaChatRecord": _record("message", message, {}),
        "OllamaError": {"type": "object", "required": ["error"], "properties": {"error": TEXT}}}


def operations() -> dict[tuple[str, str], Json]:
    """The requests and responses of each operation, by path and method."""
    say = {"model": "llama3:8b", "stream": False}
    action = in_path("action", "pull", enum=list(REFUSED))
    target = in_path("target", "sha256:365c0bd3c000")
    refused: dict[tuple[str, str], Json] = {}
    for method in REFUSED_METHODS:
        name = f"ollama_refuse_{method.lower()}"
        refused[PREFIX + "{action}", method] = {**_operation({}), "operationId": name, "parameters": [action]}
        refused[PREFIX + "{action}/{target}", method] = {
            **_operation({}), "operationId": f"{name}_target", "parameters": [action, target]}
    return {
        (PREFIX + "generate", "POST"): _spoken("Generate", {**say, "prompt": _SKY}, {"response": "Hi"}),
        (PREFIX + "chat", "POST"): _spoken("Chat", {**say, "messages": [{"role": "user", "content": _SKY}]},
                                           {"message": {"role": "assistant", "content": "Hi"}}),
        (PREFIX + "embed", "POST"): _embedding("OllamaEmbedRequest", {"model": _EMBEDDER, "input": [_SKY, "Hi"]}, ref(
            "schemas", "OllamaVectors"), {"model": _EMBEDDER, "embeddings": [[0.6, 0.8], [1, 0]]}),
        (PREFIX + "embeddings", "POST"): _embedding("OllamaEmbeddingRequest", {"model": _EMBEDDER, "prompt": _SKY}, {
            "type": "object", "required": ["embedding"], "properties": {"embedding": _VECTOR}}, {
                "embedding": [1.2, 1.6]}),
        (PREFIX + "show", "POST"): {
            **_operation(_json("The description.", {"type": "object"}, {"capabilities": ["completion"]})),
            "requestBody": _body("OllamaShowRequest", {"model": "llama3:8b"})},
        (PREFIX + "tags", "GET"): _operation(_json("The models.", _MODELS, {"models": [{"name": "llama3:8b"}]})),
        (PREFIX + "ps", "GET"): _operation(_json("The models.", _MODELS, {"models": []})),
        (PREFIX + "version", "GET"): _operation(_json("The version.", _VERSION, {"version": "0.33.0"})),
        (PREFIX + "status", "GET"): _operation(_json("The state.", {"type": "object"}, {
            "cloud": {"disabled": True, "source": "config"}})),
        **refused}


def _spoken(kind: str, asked: Json, said: Json) -> Json:
    record = ref("schemas", f"Ollama{kind}Record")
    example = {**_EXAMPLE, **said, "done": True, "done_reason": "stop", **_FIGURES}
    answered = _json("The answer: JSON, or a stream of records.", record, example)
    answered["200"]["content"]["application/x-ndjson"] = {"schema": TEXT}
    answered["200"]["headers"] = headers("Age", "Cache-Status")
    return {**_operation(answered), "description": SPOKEN, "parameters": ["Cache-Control"],
            "requestBody": _body(f"Ollama{kind}Request", asked)}


def _embedding(request: str, asked: Json, schema: Json, told: Json) -> Json:
    answered = _json("The vectors, in the order of the texts.", schema, told)
    answered["200"]["headers"] = headers("Age")
    return {**_operation(answered), "description": EMBEDDED, "parameters": ["Cache-Control"],
            "requestBody": _body(request, asked)}


def _operation(answers: Json) -> Json:
    return {"tags": ["ollama"], "responses": answers}


def failures(path: str) -> dict[str, Json]:
    """The responses to failures at ``path``, by status, without headers."""
    rows: dict[str, Json] = defaultdict(dict)
    for error in _EXAMPLES:
        if isinstance(error, _OF_BODIES) and path not in _POSTED:
            continue
        fault = problems.fault_for(error, "PUT")
        status, text = status_and_text(fault, error)
        unknown = isinstance(error, (NotFound, MethodNotAllowed))
        rows["default" if unknown else str(status)][f"{fault.slug}-{len(rows)}"] = {
            "summary": fault.title, "value": {"error": text}}
    wanted = {"400", "401", "429", "500", "default", *(["403"] if "{" in path else []),
              *(["503"] if path in _ASKING else [])}
    return {status: {"description": HTTPStatus(int(status)).phrase if status != "default" else "Nothing is there.",
                     "content": {"application/json": {"schema": _ERROR, "examples": examples}}}
            for status, examples in rows.items() if status in wanted or path in _POSTED}


def _body(schema: str, example: Json) -> Json:
    return {"required": True, "content": {"application/json": {
        "schema": ref("schemas", schema), "examples": {"plain": {"value": example}}}}}


def _json(description: str, schema: Json, example: Json) -> Json:
    return {"200": {"description": description, "content": {"application/json": {
        "schema": schema, "examples": {"plain": {"value": example}}}}}}
