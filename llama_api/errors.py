"""Every failure the service knows. Each builds its own sentence from typed arguments, which are its ``args``.

``faults`` has the one table from each to its status and slug.

    LlamaApiError
    ├── what is wrong with a request: MalformedJSON, InvalidRequest, ModelNotServed, NotJSON, BodyTooLarge, ...
    ├── QueueFull, QueueTimeout      no slot, and no room or no time left to wait
    ├── NotCached, GenerationCancelled, ClientGone
    └── OllamaError                  Ollama answered with an error, garbage or a partial answer
        ├── OllamaUnavailable        nobody listens there
        │   ├── OllamaUntrusted      it does not speak TLS, or with a certificate that is not trusted
        │   └── OllamaHangs          its last generations timed out
        ├── OllamaBusy               it stayed busy over a few tries
        ├── OllamaTimeout            the deadline passed
        ├── ModelNotFound            it lacks the model
        │   └── RemoteModel          what it has of that name runs on a foreign host
        └── PromptTooLong            the prompt does not fit the context window
"""

from collections.abc import Sequence
from typing import Any


class LlamaApiError(Exception):
    """A failure with a sentence for whoever asked. ``retry_after`` is in whole seconds, None where it does not help."""

    retry_after: int | None = None


# What is wrong with a request


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
        return f"Correct what `errors` says of: {', '.join(list(self.errors)[:3])}."


class ModelNotServed(LlamaApiError):
    """The request names another model than those served; the arguments are its name and the names of these."""

    def __init__(self, name: str, served: Sequence[str]):
        super().__init__(name, list(served))
        self.name, self.served = name, list(served)

    def __str__(self) -> str:
        return f"The model `{self.name[:100]}` is not served here; these are: {', '.join(self.served)}."


class ModelMissing(ModelNotServed):
    """The model is one of those served, but not there; the arguments are its name and ``why``, a sentence."""

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
    """The API key is missing or wrong; ``bearer_only`` where X-API-Key is not looked at."""

    def __init__(self, bearer_only: bool = False):
        super().__init__(bearer_only)

    def __str__(self) -> str:
        return f"Send a valid API key as `Authorization: Bearer KEY`{'' if self.args[0] else ' or `X-API-Key: KEY`'}."


class BodyTooLarge(LlamaApiError):
    """The body is longer than the argument, MAX_BODY_BYTES."""

    def __str__(self) -> str:
        return f"The body may have at most {self.args[0]} bytes (LLAMA_API_MAX_BODY_BYTES), base64 of images included."


class BodyTimeout(LlamaApiError):
    """The body did not come within the argument, in seconds."""

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


# What keeps an answer from coming


class NotCached(LlamaApiError):
    """The caller wanted a stored answer only, and there is none."""

    def __str__(self) -> str:
        return "only-if-cached forbids to generate and no fresh answer is stored; send the request without it."


class GenerationCancelled(LlamaApiError):
    """An operator ended the generation."""

    def __str__(self) -> str:
        return "An operator ended this generation; ask again if the answer is still wanted."


class QueueFull(LlamaApiError):
    """No slot is free and no room is left to wait: the arguments are ``limit`` and ``retry_after`` in seconds."""

    def __init__(self, limit: int, retry_after: int):
        super().__init__(limit, retry_after)
        self.retry_after = retry_after

    def __str__(self) -> str:
        return (f"The model is busy: every slot is busy and {self.args[0]} others wait already."
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
        return "Ollama failed; its log and ours say why."


class OllamaBrokeOff(OllamaError):
    """The answer ended before it was complete."""

    def __str__(self) -> str:
        return "Ollama broke off before the answer was complete; its log says why."


class OllamaReset(OllamaError):
    """The connection broke."""

    def __str__(self) -> str:
        return "Ollama broke the connection off; it may have crashed or been restarted. Try again."


class OllamaReported(OllamaError):
    """Ollama reported an error in the midst of an answer."""

    def __str__(self) -> str:
        return "Ollama reported an error while generating; its log says why."


class OllamaGarbled(OllamaError):
    """What came is not Ollama's protocol; the argument says what came, such as ``a line longer than any answer``."""

    def __str__(self) -> str:
        return f"Ollama sent {self.args[0]}; check OLLAMA_URL and Ollama's log."


class NotOllama(OllamaError):
    """Something else answers at OLLAMA_URL, with the status in the argument."""

    def __str__(self) -> str:
        return (f"What answers at OLLAMA_URL (status {self.args[0]}) does not speak Ollama's protocol; check the URL,"
                " its path and the host names that Ollama accepts.")


class OllamaRefused(OllamaError):
    """Ollama answered with an error ``status`` and ``text``, its own words, which may hold paths."""

    def __init__(self, status: int, text: str = ""):
        super().__init__(status, text)
        self.status, self.text = status, text

    def __str__(self) -> str:
        return f"Ollama refused or failed to generate (status {self.status}); its log and ours say why."


class OllamaUnavailable(OllamaError):
    """Nobody accepts connections at OLLAMA_URL."""

    retry_after = 5

    def __str__(self) -> str:
        return "Nobody accepts connections at OLLAMA_URL; start Ollama with `ollama serve`."


class OllamaUntrusted(OllamaUnavailable):
    """No TLS connection to OLLAMA_URL could be made."""

    def __str__(self) -> str:
        return "No TLS with OLLAMA_URL; name who signed its certificate in REQUESTS_CA_BUNDLE, or write http://."


class OllamaHangs(OllamaUnavailable):
    """As many generations in a row as the argument says timed out, so only one at a time is tried."""

    def __str__(self) -> str:
        return (f"The last {self.args[0]} generations timed out, so only one at a time is tried until Ollama answers"
                " again; restart Ollama (`ollama serve`) if this lasts.")


class OllamaBusy(OllamaError):
    """Ollama answered 503 to every try; the argument is ``retry_after`` in seconds."""

    def __init__(self, retry_after: int = 5):
        super().__init__(retry_after)
        self.retry_after = retry_after

    def __str__(self) -> str:
        return "Ollama is busy and refused the request; try again later."


class OllamaTimeout(OllamaError):
    """The deadline passed and the call was closed. The argument tells whether a piece of the answer had come."""

    def __init__(self, flowing: bool = False):
        super().__init__(flowing)
        self.flowing = flowing

    def __str__(self) -> str:
        return "Ollama did not finish in time; ask for fewer tokens or try again later."


class ModelNotFound(OllamaError):
    """Ollama has no such ``model``; ``text`` is how it said so, None where it was not asked."""

    retry_after = 60

    def __init__(self, model: str, text: str | None = None):
        super().__init__(model, text)
        self.model, self.text = model, text

    def __str__(self) -> str:
        return f"Ollama does not have the model {self.model}; run `ollama pull {self.model}` on its host."


class RemoteModel(ModelNotFound):
    """What Ollama has under the name of ``model`` runs on a foreign host: nothing is sent to it."""

    def __str__(self) -> str:
        return (f"Ollama has {self.model} as a cloud model alone, which would send the prompts to another host; run"
                f" `ollama rm {self.model}` and `ollama pull {self.model}` on its host.")


class PromptTooLong(OllamaError):
    """The prompt does not fit the context window: ``tokens`` and ``window`` where Ollama told them, else None.

    ``text`` is how it said so.
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
    """The error in ``fields``; None for one that this version does not know."""
    try:
        return _BY_NAME[fields["error"]](*fields["args"])
    except (TypeError, KeyError):
        return None


def _tree(kind: type[LlamaApiError]) -> list[type[LlamaApiError]]:
    return [kind, *(below for child in kind.__subclasses__() for below in _tree(child))]


_BY_NAME = {kind.__name__: kind for kind in _tree(LlamaApiError)}
