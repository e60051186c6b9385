"""The names of spans and OTLP metrics, all in this table: those of ``gen_ai`` are still in development.

Source: OpenTelemetry's semantic conventions 1.42 (HTTP, server, error), and those of GenAI, which have a repository of
their own. Names that begin with ``llama_api`` are ours.
"""

from ..model_call import CHAT, EMBED, EMBEDDINGS, GENERATE

PROVIDER = "ollama"
OPERATIONS = {GENERATE: "text_completion", CHAT: "chat", EMBED: "embeddings", EMBEDDINGS: "embeddings"}
WAIT = "wait for a slot"

METHOD, ROUTE, STATUS = "http.request.method", "http.route", "http.response.status_code"
PATH, SERVER_ADDRESS, SERVER_PORT, ERROR_TYPE = "url.path", "server.address", "server.port", "error.type"
CACHE, REQUEST_ID = "llama_api.cache", "llama_api.request_id"

OPERATION_NAME, PROVIDER_NAME = "gen_ai.operation.name", "gen_ai.provider.name"
REQUEST_MODEL, RESPONSE_MODEL = "gen_ai.request.model", "gen_ai.response.model"
STREAM, FINISH_REASONS = "gen_ai.request.stream", "gen_ai.response.finish_reasons"
FIRST_CHUNK, TOKEN_TYPE = "gen_ai.response.time_to_first_chunk", "gen_ai.token.type"
# Ollama's options and the exported fields of Completion; no span contains stops or texts, the caller's own words.
OPTIONS = {
    "temperature": "gen_ai.request.temperature", "top_p": "gen_ai.request.top_p", "top_k": "gen_ai.request.top_k",
    "num_predict": "gen_ai.request.max_tokens", "seed": "gen_ai.request.seed",
    "frequency_penalty": "gen_ai.request.frequency_penalty", "presence_penalty": "gen_ai.request.presence_penalty"}
COUNTS = {
    "input_tokens": "gen_ai.usage.input_tokens", "output_tokens": "gen_ai.usage.output_tokens",
    "cached_input_tokens": "gen_ai.usage.cache_read.input_tokens"}

# Metrics: name, unit, description, bounds of the buckets.
_SECONDS = (.01, .02, .04, .08, .16, .32, .64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
DURATION = ("gen_ai.client.operation.duration", "s", "Time of one generation at one Ollama.", _SECONDS)
TIME_TO_FIRST_CHUNK = ("gen_ai.client.operation.time_to_first_chunk", "s", "From the request to Ollama to the first"
                       " piece.", _SECONDS)
TOKEN_USAGE = ("gen_ai.client.token.usage", "{token}", "Tokens that a generation read and wrote.",
               tuple(4 ** power for power in range(14)))
