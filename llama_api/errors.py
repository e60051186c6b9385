"""Every failure the service knows. Each builds its own sentence from typed arguments, which are its ``args``.

``faults.TABLE`` maps each to its status and slug.

    LlamaApiError
    ├── a fault of the request: MalformedJSON, InvalidRequest, ModelNotServed, NotJSON, BodyTooLarge, ...
    ├── QueueFull, QueueTimeout      no slot, and no room or no time left to wait
    ├── NotCached, GenerationCancelled, ClientGone
    └── OllamaError                  Ollama answered with an error, garbage or a partial answer
        ├── OllamaUnavailable        nothing listens there
        │   ├── OllamaUntrusted      it does not speak TLS, or its certificate is not trusted
        │   └── OllamaHangs          its last generations timed out
        ├── OllamaBusy               it stayed busy over a few tries
        ├── OllamaTimeout            the deadline passed
        ├── ModelNotFound            it lacks the model
        │   └── RemoteModel          what it has under that name runs on another host
        └── PromptTooLong            the prompt does not fit the context window
"""

from collections.abc import Sequence
from typing import Any


class LlamaApiError(Exception):
    """A failure; its text is for the caller. ``retry_after`` is in whole seconds, None where a retry does not help."""

    retry_after: int | None = None


# Faults of a request


class MalformedJSON(LlamaApiError):
    """The body is not one JSON object; the argument completes the sentence ``..., but <reason>.``"""

    def __str__(self) -> str:
        return f"The body must be one JSON object, but {self.args[0]}."


class InvalidRequest(LlamaApiError):
    """One or more fields are wrong: the argument maps each to its messages."""

    def __init__(self, errors: dict[str, list[str]]):
        super().__init__(errors)
        self.errors = errors

    def __str__(self) -> str:
        return f"Some fields are invalid ({', '.join(list(self.errors)[:3])}); `errors` says why."


class ModelNotServed(LlamaApiError):
    """The request names a model that is not served; the arguments are its name and the names of the served ones."""

    def __init__(self, name: str, served: Sequence[str]):
        super().__init__(name, list(served))
        self.name, self.served = name, list(served)

    def __str__(self) -> str:
        return f"The model `{self.name[:100]}` is not served here; these are: {', '.join(self.served)}."


class ModelMissing(ModelNotServed):
    """The model is served but cannot be found; the arguments are its name and ``why``, a sentence."""

    def __init__(self, name: str, why: str):
        super().__init__(name, [])
        self.args = (name, why)
        self.why = why

    def __str__(self) -> str:
        return self.why


class UnknownFlight(LlamaApiError):
    """No generation under way has the id."""

    def __str__(self) -> str:
        return "No generation under way has this id; it may have ended."


class UntrustedHost(LlamaApiError):
    """The Host header is not one of TRUSTED_HOSTS."""

    def __str__(self) -> str:
        return "The Host header names no host of this service; call it by its configured name."


class Unauthorized(LlamaApiError):
    """The API key is missing or wrong; ``bearer_only`` where X-API-Key is not accepted."""

    def __init__(self, bearer_only: bool = False):
        super().__init__(bearer_only)

    def __str__(self) -> str:
        return f"Send a valid API key as `Authorization: Bearer KEY`{'' if self.args[0] else ' or `X-API-Key: KEY`'}."


class BodyTooLarge(LlamaApiError):
    """The body is longer than the argument, MAX_BODY_BYTES."""

    def __str__(self) -> str:
        return f"The body may have at most {self.args[0]} bytes (LLAMA_API_MAX_BODY_BYTES), base64 of images included."


class BodyTimeout(LlamaApiError):
    """The body did not arrive in time; the argument is the time limit in seconds."""

    def __str__(self) -> str:
        return f"The body was not complete after {self.args[0]:g} s."


class NotJSON(LlamaApiError):
    """The Content-Type is not JSON."""

    def __str__(self) -> str:
        return "Send JSON with the header `Content-Type: application/json`."


class ClientGone(LlamaApiError):
    """The client closed its connection before it had its answer."""

    def __str__(self) -> str:
        return "The client closed the connection."


# Failures to answer


class NotCached(LlamaApiError):
    """The caller wanted a stored answer only, and there is none."""

    def __str__(self) -> str:
        return "No fresh answer is stored, and `only-if-cached` forbids generating one; send the request without it."


class GenerationCancelled(LlamaApiError):
    """An operator ended the generation."""

    def __str__(self) -> str:
        return "An operator ended this generation; ask again if you still need the answer."


class QueueFull(LlamaApiError):
    """No slot is free and no room is left to wait: the arguments are ``limit`` and ``retry_after`` in seconds."""

    def __init__(self, limit: int, retry_after: int):
        super().__init__(limit, retry_after)
        self.retry_after = retry_after

    def __str__(self) -> str:
        return (f"The model is busy: every slot is taken and {self.args[0]} requests are already waiting."
                f" Try again in {self.retry_after} s.")


class QueueTimeout(LlamaApiError):
    """No slot became free in time: the arguments are the ``seconds`` waited and ``retry_after`` in seconds."""

    def __init__(self, seconds: float, retry_after: int):
        super().__init__(seconds, retry_after)
        self.retry_after = retry_after

    def __str__(self) -> str:
        return (f"The model is busy: no slot became free within {self.args[0]:g} s."
                f" Try again in {self.retry_after} s.")


class OllamaError(LlamaApiError):
    """Ollama answered with an error, garbage or a partial answer."""

    def __str__(self) -> str:
        return "Ollama failed; see its log and this service's log."


class OllamaBrokeOff(OllamaError):
    """The answer ended before it was complete."""

    def __str__(self) -> str:
        return "Ollama broke off before the answer was complete; its log says why."


class OllamaReset(OllamaError):
    """The connection broke."""

    def __str__(self) -> str:
        return "The connection to Ollama was lost; Ollama may have crashed or been restarted. Try again."


class OllamaReported(OllamaError):
    """Ollama reported an error in the middle of an answer."""

    def __str__(self) -> str:
        return "Ollama reported an error while generating; its log says why."


class OllamaGarbled(OllamaError):
    """The response violates Ollama's protocol; the argument names the fault: ``a line longer than any answer``."""

    def __str__(self) -> str:
        return f"Ollama sent {self.args[0]}; check OLLAMA_URL and Ollama's log."


class NotOllama(OllamaError):
    """Something other than Ollama answers at OLLAMA_URL; the argument is its status."""

    def __str__(self) -> str:
        return (f"The server at OLLAMA_URL (status {self.args[0]}) does not speak Ollama's protocol; check the URL,"
                " its path and the host names that Ollama accepts.")


class OllamaRefused(OllamaError):
    """Ollama answered with an error: its ``status`` and its own ``text``, which may contain paths."""

    def __init__(self, status: int, text: str = ""):
        super().__init__(status, text)
        self.status, self.text = status, text

    def __str__(self) -> str:
        return f"Ollama refused or failed to generate (status {self.status}); see its log and this service's log."


class OllamaUnavailable(OllamaError):
    """Nothing accepts connections at OLLAMA_URL."""

    retry_after = 5

    def __str__(self) -> str:
        return "Nothing accepts connections at OLLAMA_URL; start Ollama with `ollama serve`."


class OllamaUntrusted(OllamaUnavailable):
    """No TLS connection to OLLAMA_URL could be made."""

    def __str__(self) -> str:
        return "No TLS connection to OLLAMA_URL; set REQUESTS_CA_BUNDLE to its certificate's issuer, or use http://."


class OllamaHangs(OllamaUnavailable):
    """The last generations timed out (the argument is their number), so only one at a time is tried."""

    def __str__(self) -> str:
        return (f"The last {self.args[0]} generations timed out, so only one at a time is tried until Ollama answers"
                " again; restart Ollama (`ollama serve`) if this continues.")


class OllamaBusy(OllamaError):
    """Ollama answered 503 to every try; the argument is ``retry_after`` in seconds."""

    def __init__(self, retry_after: int = 5):
        super().__init__(retry_after)
        self.retry_after = retry_after

    def __str__(self) -> str:
        return "Ollama is busy and refused the request; try again later."


class OllamaTimeout(OllamaError):
    """The deadline passed and the call was closed. The argument says whether a piece of the answer had arrived."""

    def __init__(self, flowing: bool = False):
        super().__init__(flowing)
        self.flowing = flowing

    def __str__(self) -> str:
        return "Ollama did not finish in time; ask for fewer tokens or try again later."


class ModelNotFound(OllamaError):
    """Ollama has no such ``model``; ``text`` is its message, None if it was not asked."""

    retry_after = 60

    def __init__(self, model: str, text: str | None = None):
        super().__init__(model, text)
        self.model, self.text = model, text

    def __str__(self) -> str:
        return f"Ollama does not have the model {self.model}; run `ollama pull {self.model}` on its host."


class RemoteModel(ModelNotFound):
    """Ollama has ``model`` only as a stub for a model on another host: nothing is sent to it."""

    def __str__(self) -> str:
        return (f"Ollama has {self.model} only as a cloud model, which would send the prompts to another host; run"
                f" `ollama rm {self.model}` and `ollama pull {self.model}` on its host.")


class PromptTooLong(OllamaError):
    """The prompt does not fit the context window: ``tokens`` and ``window`` where Ollama reported them, else None.

    ``text`` is its message.
    """

    def __init__(self, tokens: int | None = None, window: int | None = None, text: str | None = None):
        super().__init__(tokens, window, text)
        self.tokens, self.window, self.text = tokens, window, text

    def __str__(self) -> str:
        size = "" if None in (self.tokens, self.window) else f" ({self.tokens} tokens, room for {self.window})"
        return f"The prompt does not fit the model's context window{size}; shorten it."


def to_wire(error: LlamaApiError) -> dict[str, Any]:
    """``error`` as values of JSON, for another process of the service."""
    return {"error": type(error).__name__, "args": list(error.args)}


def from_wire(fields: dict[str, Any]) -> LlamaApiError | None:
    """The error described by ``fields``; None for one that this version does not know."""
    try:
        return _BY_NAME[fields["error"]](*fields["args"])
    except (TypeError, KeyError):
        return None


def _tree(kind: type[LlamaApiError]) -> list[type[LlamaApiError]]:
    return [kind, *(below for child in kind.__subclasses__() for below in _tree(child))]


_BY_NAME = {kind.__name__: kind for kind in _tree(LlamaApiError)}
