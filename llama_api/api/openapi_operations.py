"""The texts of the OpenAPI document on each operation that schemas, errors and routes do not contain."""

from werkzeug.exceptions import BadRequest, MethodNotAllowed, NotFound, TooManyRequests

from .. import errors
from ..faults import UNREADABLE_DETAIL
from ..http import REQUEST_ID, problems
from ..strict_json import Json
from .openapi_parts import headers, in_path, kept, ref


INFO = """\
Text from a Llama model behind Ollama by one plain call. Answers are cached, identical requests that arrive at the
same time share one generation, and every answer includes figures of what it took.

- Every response has an `X-Request-ID`; the log line of the request has the same.
- Every error is an RFC 9457 problem (`application/problem+json`). Its `type` ends in a stable slug; its `detail` says
  what to do. Only the health endpoints have their own bodies for 503, and OpenAI's and Ollama's APIs their own errors.
- `HEAD` works wherever `GET` does, and `OPTIONS` lists the methods of a URL.
- Where API keys are configured, every endpoint except health, the page and the documentation requires one."""

TAGS = {
    "generation": "Ask the model.",
    "openai": "OpenAI's API: an official client works by changing its base URL.",
    "ollama": "Ollama's API: its clients work by changing the host.",
    "cache": "Look at the stored answers, or remove them.",
    "health": "For load balancers, orchestrators and people. Always fast, never rate-limited; they never generate.",
    "monitoring": "Timings for Prometheus and for the page; ends a generation.",
    "page": "The page for people: ask the model and watch the service.",
    "documentation": "This document, a page to read it and try the calls, and a page on each problem.",
}

GENERATE = """\
Requests that would get the same answer share one entry of the cache, streamed or not, and join a generation that is
already under way. `Cache-Status` says what happened. While Ollama fails, a stale answer may be served
instead of an error, with `Age` and `Cache-Status: llama-api; fwd=stale; detail=<slug>`.

A client that closes its connection ends its generation, unless another request is waiting for the same answer.

With `"stream": true` the answer comes as server-sent events. Each is one line `data: <JSON>` and a blank line:

- `StreamPiece`, as often as needed: the next piece of the answer. The concatenated pieces are the answer.
- `StreamEnd`, once, at the end: `"done": true` and the fields of the plain answer.
- A failure after the first piece is an event named `error` (a line `event: error` before the `data`) with a `Problem`;
  then there is no `StreamEnd`. A failure before the first piece is an ordinary problem response."""

STREAM_EXAMPLE = """\
data: {"response": "Sunlight is", "done": false}

data: {"response": " scattered by the air.", "done": false}

data: {"response": "", "done": true, "model": "llama3:8b", "finish_reason": "stop", "cached": false, \
"metrics": {"inference_latency_ms": 812.4, "input_tokens": 17, "output_tokens": 50, "cpu_usage_percent": 45.2, \
"memory_usage_percent": 60.1, "queue_ms": 0.1, "time_to_first_token_ms": 95.0, "tokens_per_second": 71.2}}

"""

CACHE_CONTROL = """\
How to use the cache. Separate directives by commas; unknown ones are ignored.

| directive | meaning |
|---|---|
| `no-cache` | do not answer from the cache; store the new answer |
| `no-store` | neither answer from the cache nor store |
| `max-age=N` | accept only an answer at most N seconds old |
| `only-if-cached` | never generate; without a stored answer the response is 504 `not-cached` |"""

METRICS_EXAMPLE = """\
# HELP llama_api_generations_running Generations that hold a slot.
# TYPE llama_api_generations_running gauge
llama_api_generations_running{host="127.0.0.1:11434"} 1.0
"""

PARAMETERS: dict[str, Json] = {
    "Cache-Control": {"description": CACHE_CONTROL, "schema": {
        "type": "string", "examples": ["no-cache", "max-age=60"]}},
    "X-Request-ID": {
        "description": "1 to 128 characters of `A-Za-z0-9._-` that name this request; anything else is replaced.",
        "schema": {"type": "string", "examples": ["9f1c2ab04d5e4c3f"]}},
    "If-None-Match": {"description": "The `ETag` of the cached copy; the response is 304 if it is still current.",
                      "schema": {"type": "string"}},
}

_COUNT = {"type": "integer", "minimum": 0}
_LIMITED = "Only where a rate limit is configured."
HEADERS: dict[str, Json] = {
    "X-Request-ID": {"description": "The id of this request; the caller's if it sent a valid one.", "required": True,
                     "schema": {"type": "string", "pattern": f"^{REQUEST_ID}$"}},
    "Cache-Status": {"description": "What the cache did (RFC 9211).", "required": True, "schema": {
        "type": "string", "pattern": "^llama-api; (hit|fwd=(miss|stale|request|bypass))(; .+)?$",
        "examples": ["llama-api; hit; ttl=3600", "llama-api; fwd=miss; stored", "llama-api; fwd=miss; collapsed"]}},
    "Age": {"description": "Seconds since the stored answer was generated; only on a stored answer.",
            "schema": _COUNT},
    "Retry-After": {"description": "Seconds after which to try again.", "schema": {"type": "integer", "minimum": 1}},
    "X-Should-Retry": {"description": "Whether OpenAI's clients should retry automatically.",
                       "schema": {"type": "string", "enum": ["true", "false"]}},
    "Allow": {"description": "The methods that this URL supports; sent with 405.", "schema": {"type": "string"}},
    "WWW-Authenticate": {"description": "How to authenticate.", "required": True,
                         "schema": {"type": "string", "const": "Bearer"}},
    "RateLimit-Limit": {"description": f"Requests allowed in the window. {_LIMITED}", "schema": _COUNT},
    "RateLimit-Remaining": {"description": f"Requests left in the window. {_LIMITED}", "schema": _COUNT},
    "RateLimit-Reset": {"description": f"Seconds until the window ends. {_LIMITED}", "schema": _COUNT},
    "ETag": {"description": "Names this version of the body.", "required": True, "schema": {"type": "string"}},
}

FIELD_FAULTS = {"prompt": ["Must not be empty or only white space."], "max_tokens": ["Not a valid integer."]}
# An example of each problem, with the service's own detail; a missing slug fails the start.
_EXAMPLES = (
    errors.MalformedJSON("Expecting value at line 1, column 1"), errors.UntrustedHost(), errors.Unauthorized(),
    errors.BodyTimeout(15.0), errors.BodyTooLarge(1048576), errors.NotJSON(), errors.InvalidRequest(FIELD_FAULTS),
    errors.PromptTooLong(9113, 8192), errors.ClientGone(), errors.OllamaBrokeOff(), errors.OllamaUnavailable(),
    errors.ModelNotFound("llama3:8b"), errors.QueueFull(64, 30), errors.GenerationCancelled(),
    errors.OllamaTimeout(), errors.NotCached(), Exception(), BadRequest(UNREADABLE_DETAIL), NotFound(),
    MethodNotAllowed(["OPTIONS", "POST"]), TooManyRequests("60 per 1 minute"))
DETAILS = {fault.slug: fault.detail for fault in (problems.fault_for(error, "PUT") for error in _EXAMPLES)}


_HOST: Json = {"host": "127.0.0.1:11434", "usable": True, "reachable": True, "version": "0.33.0", "model_present": True,
               "loaded": True, "gpu_percent": 100, "context_length": 8192, "digest": "365c0bd3c000", "running": 0,
               "slots": 1, "reason": None}
_AWAY = _HOST | {"usable": False, "reachable": False, "version": None, "model_present": False, "loaded": None,
                 "gpu_percent": None, "context_length": None, "digest": None,
                 "reason": "Nothing accepts connections at OLLAMA_URL; start Ollama with `ollama serve`."}
HEALTH_EXAMPLES: dict[str, Json] = {
    "healthy": {"status": "healthy", "cache_size": 42, "model": "llama3:8b",
                "ollama": {"reachable": True, "version": "0.33.0", "model_present": True},
                "queue": {"running": 0, "waiting": 0, "slots": 1, "limit": 64}, "hosts": [_HOST]},
    "degraded": {"status": "degraded", "reason": "the queue is full", "cache_size": 42, "model": "llama3:8b",
                 "ollama": {"reachable": True, "version": "0.33.0", "model_present": True},
                 "queue": {"running": 1, "waiting": 64, "slots": 1, "limit": 64}, "hosts": [_HOST | {"running": 1}]},
    "unhealthy": {"status": "unhealthy", "reason": _AWAY["reason"],
                  "cache_size": 42, "model": "llama3:8b",
                  "ollama": {"reachable": False, "version": None, "model_present": False},
                  "queue": {"running": 0, "waiting": 0, "slots": 1, "limit": 64}, "hosts": [_AWAY]},
}


# OpenAPI 3.1 cannot describe a sequence of events: tools apply the schema to the whole text or to each event.
STREAM = {"anyOf": [{"type": "string"}, {
    "type": "object", "required": ["data"], "properties": {
        "event": {"enum": ["message", "error"]},
        "data": {"type": "string", "contentMediaType": "application/json", "contentSchema": {
            "oneOf": [ref("schemas", name) for name in ("StreamPiece", "StreamEnd", "Problem")]}}}}]}


def operations(known: Json) -> dict[tuple[str, str], Json]:
    """The requests and responses of each operation, by path and method; ``known`` are the schemas."""
    stats = _json("The figures, since the start, over all workers.", "CacheStats", now=_sample(known, "CacheStats"))
    ready = _json("They can.", "Ready", ready={"status": "ready"})
    unready = _json("They cannot.", "Ready", unready={"status": "not ready", "reason": DETAILS["ollama-unavailable"]})
    well = {state: HEALTH_EXAMPLES[state] for state in ("healthy", "degraded")}
    ill = {"unhealthy": HEALTH_EXAMPLES["unhealthy"]}
    return {
        ("/generate", "POST"): _generate(known),
        ("/cache", "GET"): _plain("cache", {"200": stats}),
        ("/cache", "DELETE"): _plain("cache", {"204": {"description": "Every answer is gone."}}),
        ("/livez", "GET"): _plain("health", {"200": _json("It does.", "Alive", alive=_sample(known, "Alive"))}),
        ("/readyz", "GET"): _plain("health", {"200": ready, "503": unready}),
        ("/health", "GET"): _plain("health", {
            "200": _json("It serves; `reason` says what is wrong when it is `degraded`.", "Health", **well),
            "503": _json("It cannot serve; `reason` says why.", "Health", **ill)}),
        ("/metrics", "GET"): _plain("monitoring", {"200": {
            "description": "All figures, over all workers, in the text format of Prometheus.",
            "content": {"text/plain": {"schema": {"type": "string"}, "example": METRICS_EXAMPLE}}}}),
        **_documentation()}


def _generate(known: Json) -> Json:
    fields = known["GenerateRequest"]["properties"]
    question = {"prompt": fields["prompt"]["examples"][0]}
    shown = {name: fields[name]["examples"][0] for name in ("max_tokens", "temperature")}
    every = {name: field["examples"][0] for name, field in fields.items()}
    generated = _sample(known, "GenerateResponse")
    cached = {**generated, "cached": True, "metrics": {
        **generated["metrics"], "inference_latency_ms": 0.2, "queue_ms": 0.0, "time_to_first_token_ms": None,
        "tokens_per_second": None}}
    return {
        "tags": ["generation"], "description": GENERATE, "parameters": ["Cache-Control"],
        "requestBody": {"required": True, "content": {"application/json": {
            "schema": ref("schemas", "GenerateRequest"), "examples": {
                "plain": {"summary": "A question", "value": {**question, **shown}},
                "stream": {"summary": "A question, its answer streamed", "value": {**question, "stream": True}},
                "all": {"summary": "Every field", "value": every}}}}},
        "responses": {"200": {
            "description": "The answer: JSON, or a stream of events where `stream` is true.",
            "headers": headers("Cache-Status", "Age"), "content": {
                "application/json": {"schema": ref("schemas", "GenerateResponse"), "examples": {
                    "generated": {"summary": "Generated", "value": generated},
                    "cached": {"summary": "From the cache", "value": cached}}},
                "text/event-stream": {"schema": STREAM, "example": STREAM_EXAMPLE}}}}}


def _documentation() -> dict[tuple[str, str], Json]:
    """The operations that serve the documentation."""
    text = {"schema": {"type": "string"}}
    known_copy = "If-None-Match"
    return {
        ("/openapi.json", "GET"): _plain("documentation", kept(
            "An OpenAPI 3.1 document.", {"application/json": {"schema": {"type": "object"}}}), known_copy),
        ("/docs", "GET"): _plain("documentation", kept("Swagger UI.", {"text/html": text}), known_copy),
        ("/docs/{asset}", "GET"): _plain("documentation", kept("The file.", {
            "text/css": text, "text/javascript": text, "image/png": {}}), in_path(
                "asset", "swagger-ui.css"), known_copy)}


def _plain(tag: str, responses: Json, *parameters: str | Json) -> Json:
    return {"tags": [tag], "responses": responses, **({"parameters": list(parameters)} if parameters else {})}


def _json(description: str, schema: str, **examples: Json) -> Json:
    """A response of JSON, with examples by their names."""
    return {"description": description, "content": {"application/json": {
        "schema": ref("schemas", schema), "examples": {name: {"value": value} for name, value in examples.items()}}}}


def _sample(known: Json, name: str) -> Json:
    """An example of a schema, made of its fields' examples; a field without one has its first allowed value."""
    return {field: _sample(known, schema["$ref"].rpartition("/")[2]) if "$ref" in schema
            else (schema.get("examples") or schema["enum"])[0]
            for field, schema in known[name]["properties"].items()}
