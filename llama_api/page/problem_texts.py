"""What each problem means and what can be done about it, in words: one entry for each slug of faults.PROBLEMS."""

from typing import NamedTuple


class Advice(NamedTuple):
    """What a problem means, what the caller can do, and what the operator can do; `code` stands in backticks."""

    meaning: str
    caller: str
    operator: str


ADVICE = {
    "bad-request": Advice(
        "What arrived could not be read as an HTTP request.",
        "Correct the request line, the headers or the framing of the body (`Content-Length`, `Transfer-Encoding`), or"
        " use a client that writes them for you.",
        "Look whether a proxy in front rewrites requests, or sends TLS to a port that expects plain HTTP."),
    "body-too-large": Advice(
        "The body of the request is larger than the service accepts.",
        "Send less. `detail` says how much is accepted; images count with their base64 text.",
        "Raise `LLAMA_API_MAX_BODY_BYTES`, and the limit of the proxy in front."),
    "cancelled": Advice(
        "An operator ended the generation before its answer was complete. Everybody who waited for it is told so, and"
        " nothing of it was stored.",
        "Ask again if the answer is still wanted, perhaps for fewer tokens.",
        "This was done by the Cancel button of the page or by `DELETE /flights/{id}`. The log has that request."),
    "client-closed-request": Advice(
        "The caller closed the connection before the answer was complete. Only the log ever tells of this.",
        "Allow more time on your side, or stream the answer.",
        "If there are many, compare the time limits of clients and proxies with how long answers take."),
    "internal-error": Advice(
        "The service itself failed, in a way that nobody foresaw.",
        "Try again; report it with its `request_id` if it lasts.",
        "Search the log for the `request_id`: the line has the stack. Please report it."),
    "invalid-request": Advice(
        "The body is JSON, but one of its fields is missing, unknown or has a wrong value.",
        "`errors` names each field and says what is allowed; `/docs` describes them all.",
        "Nothing, unless a limit is in the way: `LLAMA_API_MAX_TOKENS_LIMIT` bounds `max_tokens`, and"
        " `LLAMA_API_MODELS` lists the models that may be named."),
    "malformed-json": Advice(
        "The body is not one JSON object: it cannot be parsed, has a key twice, or is something other than an object.",
        "`detail` says what is wrong and where. Let a JSON library write the body rather than putting it together from"
        " strings.",
        "Nothing."),
    "method-not-allowed": Advice(
        "The URL exists, but does not take this method.",
        "Use one of the methods in the `Allow` header.",
        "Nothing."),
    "model-not-found": Advice(
        "Ollama answers, but does not have the model that the service asks it for.",
        "Tell the operator, or name another model if several are served.",
        "Run `ollama pull` as `detail` says on Ollama's host, or `llama-api pull`; or correct `LLAMA_API_MODEL`."),
    "not-cached": Advice(
        "The request allowed only a stored answer (`Cache-Control: only-if-cached`), and there is none that is fresh.",
        "Send the request without `only-if-cached` to have the answer generated.",
        "If answers should have been there: see how long they stay fresh (`LLAMA_API_CACHE_TTL`), how many fit"
        " (`LLAMA_API_CACHE_MAX_ENTRIES`, `LLAMA_API_CACHE_MAX_BYTES`), and whether all workers share a"
        " `LLAMA_API_CACHE_URL`."),
    "not-found": Advice(
        "There is nothing at this URL: it is misspelled, or what it named has ended.",
        "Compare the URL with those in `/docs`. A generation that is to be ended may have ended by itself.",
        "If the service stands behind a proxy under a path, see that the proxy removes that path."),
    "ollama-error": Advice(
        "Ollama answered with an error or with something that is not an answer, or broke off in the middle.",
        "Try again. If it fails with one prompt only, change that prompt; report it with its `request_id` if it lasts.",
        "The log has Ollama's own words under the `request_id`. Out of memory and a runner that crashed are the usual"
        " causes: see Ollama's log, free memory, or use a smaller context (`LLAMA_API_NUM_CTX`) or model."),
    "ollama-timeout": Advice(
        "The answer was not complete within the time that one generation may take, and the generation was ended.",
        "Ask for fewer tokens, or try again when there is less load.",
        "See whether Ollama uses the GPU and whether the machine swaps. If answers rightly take longer, raise"
        " `LLAMA_API_TIMEOUT`. If every generation times out, Ollama hangs: restart it."),
    "ollama-unavailable": Advice(
        "Ollama cannot be reached, or it hangs and is being tried with one generation at a time.",
        "Try again after the seconds in `Retry-After`. Stored answers are served meanwhile.",
        "Start Ollama (`ollama serve`) and see that `LLAMA_API_OLLAMA_URL` is right from this host. `/health` and"
        " `llama-api doctor` say what was tried."),
    "overloaded": Advice(
        "Every slot of the model is taken and the queue is full, or the request waited too long for its turn.",
        "Try again after the seconds in `Retry-After`, which are computed from recent speed.",
        "Give it more slots (`LLAMA_API_PARALLEL`, if Ollama takes as many), another Ollama (`LLAMA_API_OLLAMA_URL`), a"
        " longer queue (`LLAMA_API_QUEUE`) or more patience (`LLAMA_API_QUEUE_TIMEOUT`). The page shows the length of"
        " the queue."),
    "prompt-too-long": Advice(
        "The prompt has more tokens than the model's context window; it is refused rather than cut in silence.",
        "Shorten the prompt or split it. `detail` says both sizes where Ollama told them.",
        "Raise `LLAMA_API_NUM_CTX` if the model and the memory allow it."),
    "rate-limited": Advice(
        "More requests came from this key or address than are allowed in a span of time.",
        "Wait as long as `Retry-After` says. The `RateLimit-…` headers of every answer say how many are left.",
        "Raise `LLAMA_API_RATE_LIMIT`. If all callers count as one, they come through a proxy: set"
        " `LLAMA_API_TRUSTED_PROXIES`, or give each a key."),
    "request-timeout": Advice(
        "The body of the request did not arrive in time.",
        "Send the whole body at once, and see that its `Content-Length` is right.",
        "Let the proxy in front read requests before it passes them on."),
    "unauthorized": Advice(
        "The service wants an API key, and the request has none or a wrong one.",
        "Send a valid key as `Authorization: Bearer KEY`; outside of `/v1/`, `X-API-Key: KEY` works too. The page asks"
        " for one by itself.",
        "Keys are in `LLAMA_API_API_KEYS` and in the file `LLAMA_API_API_KEYS_FILE`, which SIGHUP has read anew."),
    "unsupported-media-type": Advice(
        "The body was not declared to be JSON.",
        "Send the header `Content-Type: application/json`.",
        "Nothing."),
    "untrusted-host": Advice(
        "The request's `Host` header names none of the hosts that this service is known by.",
        "Call the service by its configured name.",
        "Add the name to `LLAMA_API_TRUSTED_HOSTS`. A proxy in front must pass the host name on, with"
        " `LLAMA_API_TRUSTED_PROXIES` set."),
}
