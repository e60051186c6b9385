"""Advice on each problem: one entry for each slug of faults.PROBLEMS."""

from typing import NamedTuple


class Advice(NamedTuple):
    """The meaning of a problem and what the caller and the operator can do; `code` is in backticks."""

    meaning: str
    caller: str
    operator: str


ADVICE = {
    "bad-request": Advice(
        "The service could not parse the data as an HTTP request.",
        "Correct the request line, the headers or the framing of the body (`Content-Length`, `Transfer-Encoding`), or"
        " use a client that writes them for you.",
        "Check whether a proxy in front rewrites requests, or sends TLS to a port that expects plain HTTP."),
    "body-too-large": Advice(
        "The body of the request is larger than the service accepts.",
        "Send less. `detail` gives the limit; images count as their base64 text.",
        "Raise `LLAMA_API_MAX_BODY_BYTES`, and the limit of the proxy in front."),
    "cancelled": Advice(
        "An operator ended the generation before its answer was complete. All callers that waited for it get this"
        " problem, and nothing was stored.",
        "Ask again if you still need the answer, perhaps for fewer tokens.",
        "Someone pressed the Cancel button of the page or sent `DELETE /flights/{id}`. The log has that request."),
    "client-closed-request": Advice(
        "The caller closed the connection before the answer was complete. This problem appears only in the log.",
        "Allow more time on your side, or stream the answer.",
        "If this happens often, compare the timeouts of clients and proxies with how long answers take."),
    "internal-error": Advice(
        "The service itself failed unexpectedly.",
        "Try again; report it with its `request_id` if it continues.",
        "Search the log for the `request_id`: the line has the stack trace. Please report it."),
    "invalid-request": Advice(
        "The body is JSON, but one of its fields is missing, unknown or has a wrong value.",
        "`errors` names each invalid field and says what is allowed; `/docs` describes all fields.",
        "Nothing, unless a limit is too low: `LLAMA_API_MAX_TOKENS_LIMIT` bounds `max_tokens`, and"
        " `LLAMA_API_MODELS` lists the models that may be named."),
    "malformed-json": Advice(
        "The body is not one JSON object: it cannot be parsed, has a duplicate key, or is not an object.",
        "`detail` says what is wrong and where. Let a JSON library write the body instead of concatenating strings.",
        "Nothing."),
    "method-not-allowed": Advice(
        "The URL exists, but does not support this method.",
        "Use one of the methods in the `Allow` header.",
        "Nothing."),
    "model-not-found": Advice(
        "Ollama answers, but does not have the model that the service asks it for.",
        "Notify the operator, or name another model if several are served.",
        "Run the `ollama pull` of `detail` on Ollama's host, or `llama-api pull`; or correct `LLAMA_API_MODEL`."),
    "not-cached": Advice(
        "The request allowed only a stored answer (`Cache-Control: only-if-cached`), and no fresh one is stored.",
        "Send the request without `only-if-cached` to have the answer generated.",
        "If you expected a stored answer, check how long answers stay fresh (`LLAMA_API_CACHE_TTL`), how many fit"
        " (`LLAMA_API_CACHE_MAX_ENTRIES`, `LLAMA_API_CACHE_MAX_BYTES`), and whether all workers share a"
        " `LLAMA_API_CACHE_URL`."),
    "not-found": Advice(
        "There is nothing at this URL: it is misspelled, or the generation that it named has ended.",
        "Compare the URL with those in `/docs`. A generation that you wanted to end may have ended by itself.",
        "If a proxy serves this service under a path, make sure that the proxy removes that path."),
    "ollama-error": Advice(
        "Ollama answered with an error or with malformed data, or its answer ended too early.",
        "Try again. If only one prompt fails, change that prompt. Report it with its `request_id` if it continues.",
        "The log has Ollama's error message under the `request_id`. The usual causes are lack of memory and a crashed"
        " runner: see Ollama's log, free memory, or use a smaller context (`LLAMA_API_NUM_CTX`) or model."),
    "ollama-timeout": Advice(
        "The answer was not complete within the time limit of a generation, so the generation was ended.",
        "Ask for fewer tokens, or try again when there is less load.",
        "Check whether Ollama uses the GPU and whether the machine swaps. If answers simply take longer, raise"
        " `LLAMA_API_TIMEOUT`. If every generation times out, Ollama hangs: restart it."),
    "ollama-unavailable": Advice(
        "Ollama cannot be reached, or it hangs and gets only one generation at a time as a trial.",
        "Try again after the number of seconds in `Retry-After`. Stored answers are still served.",
        "Start Ollama (`ollama serve`) and check that `LLAMA_API_OLLAMA_URL` is reachable from this host. `/health`"
        " and `llama-api doctor` report what is wrong."),
    "overloaded": Advice(
        "Every slot of the model is taken and the queue is full, or the request waited too long for a slot.",
        "Try again after the number of seconds in `Retry-After`, which is computed from the recent speed.",
        "Add slots (`LLAMA_API_PARALLEL`, if Ollama runs as many) or another Ollama (`LLAMA_API_OLLAMA_URL`), or allow"
        " a longer queue (`LLAMA_API_QUEUE`) or a longer wait (`LLAMA_API_QUEUE_TIMEOUT`). The page shows the length of"
        " the queue."),
    "prompt-too-long": Advice(
        "The prompt has more tokens than the model's context window; it is refused rather than truncated silently.",
        "Shorten the prompt or split it. `detail` gives both sizes if Ollama reported them.",
        "Raise `LLAMA_API_NUM_CTX` if the model and the memory allow it."),
    "rate-limited": Advice(
        "This key or address exceeded the rate limit.",
        "Wait for the number of seconds in `Retry-After`. The `RateLimit-…` headers of each response say how many"
        " requests are left.",
        "Raise `LLAMA_API_RATE_LIMIT`. If all callers count as one because they come through a proxy,"
        " set `LLAMA_API_TRUSTED_PROXIES`, or give each a key."),
    "request-timeout": Advice(
        "The body of the request did not arrive in time.",
        "Send the whole body at once, and check its `Content-Length`.",
        "Have the proxy in front buffer requests."),
    "unauthorized": Advice(
        "The service requires an API key, and the request has none or a wrong one.",
        "Send a valid key as `Authorization: Bearer KEY`; outside of `/v1/`, `X-API-Key: KEY` works too. The page asks"
        " for one by itself.",
        "Keys are in `LLAMA_API_API_KEYS` and in the file `LLAMA_API_API_KEYS_FILE`, which is read again at SIGHUP."),
    "unsupported-media-type": Advice(
        "The body was not declared to be JSON.",
        "Send the header `Content-Type: application/json`.",
        "Nothing."),
    "untrusted-host": Advice(
        "The request's `Host` header is not one of the configured host names of this service.",
        "Call the service by its configured name.",
        "Add the name to `LLAMA_API_TRUSTED_HOSTS`. A proxy in front must forward the host name, and"
        " `LLAMA_API_TRUSTED_PROXIES` must be set."),
}
