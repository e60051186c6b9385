"""The fault reported for each error: one table of statuses and slugs, shared by all APIs.

Code that writes a response, an event or a line to a terminal calls ``fault_of`` and formats the Fault itself.
"""

from dataclasses import dataclass
from http import HTTPStatus

from .errors import (BodyTimeout, BodyTooLarge, ClientGone, GenerationCancelled, InvalidRequest, LlamaApiError,
                     MalformedJSON, ModelNotFound, ModelNotServed, NotCached, NotJSON, OllamaBusy, OllamaError,
                     OllamaTimeout, OllamaUnavailable, PromptTooLong, QueueFull, QueueTimeout, Unauthorized,
                     UnknownFlight, UntrustedHost)

# Exception, status, slug, title. A subclass that is not listed takes its parent's row.
TABLE: tuple[tuple[type[LlamaApiError], int, str, str], ...] = (
    (MalformedJSON, 400, "malformed-json", "The body is not one JSON object"),
    (UntrustedHost, 400, "untrusted-host", "The Host header is not one of this service's"),
    (Unauthorized, 401, "unauthorized", "The API key is missing or wrong"),
    (ModelNotServed, 404, "not-found", "Not Found"),
    (UnknownFlight, 404, "not-found", "Not Found"),
    (BodyTimeout, 408, "request-timeout", "The request's body came too slowly"),
    (BodyTooLarge, 413, "body-too-large", "The request's body is too large"),
    (NotJSON, 415, "unsupported-media-type", "The Content-Type is not JSON"),
    (InvalidRequest, 422, "invalid-request", "A field is wrong"),
    (PromptTooLong, 422, "prompt-too-long", "The prompt does not fit the model's context window"),
    (ClientGone, 499, "client-closed-request", "The client closed the connection"),
    (OllamaError, 502, "ollama-error", "Ollama failed"),
    (OllamaUnavailable, 503, "ollama-unavailable", "Ollama cannot be reached"),
    (ModelNotFound, 503, "model-not-found", "Ollama does not have the model"),
    (OllamaBusy, 503, "overloaded", "The model is busy"),
    (QueueFull, 503, "overloaded", "The model is busy"),
    (QueueTimeout, 503, "overloaded", "The model is busy"),
    (GenerationCancelled, 503, "cancelled", "An operator ended the generation"),
    (OllamaTimeout, 504, "ollama-timeout", "Ollama took too long"),
    (NotCached, 504, "not-cached", "There is no stored answer"),
)
_ROWS = {row[0]: row for row in TABLE}
HTTP_SLUGS = {404: "not-found", 405: "method-not-allowed", 413: "body-too-large", 429: "rate-limited"}
INTERNAL_ERROR = (500, "internal-error", "A fault of this service")  # any other exception
UNREADABLE = (400, "bad-request", "Bad Request")  # of data that never becomes a request of the application
UNREADABLE_DETAIL = "This is not a valid HTTP request; correct its request line, its headers or its framing."
# Status and title by slug. The table comes last, so its titles take precedence.
PROBLEMS = {slug: (status, title) for status, slug, title in (
    *((status, slug, HTTPStatus(status).phrase) for status, slug in HTTP_SLUGS.items()), INTERNAL_ERROR,
    UNREADABLE, *(row[1:] for row in TABLE))}
SLUGS = tuple(sorted(PROBLEMS))


@dataclass(frozen=True, slots=True)
class Fault:
    """The report of a failure, before an API formats it. ``retry_after`` is in seconds."""

    status: int
    slug: str
    title: str
    detail: str
    retry_after: int | None = None
    errors: dict[str, list[str]] | None = None


def fault_of(error: BaseException) -> Fault:
    """The fault to report for ``error``; an internal error for an unexpected exception."""
    for kind in type(error).__mro__:
        if kind in _ROWS:
            _, status, slug, title = _ROWS[kind]
            return Fault(status, slug, title, str(error), getattr(error, "retry_after", None),
                         getattr(error, "errors", None))
    return Fault(*INTERNAL_ERROR, "The service failed; its log has the details under this request_id. Try again, and"
                                  " report it if it continues.")
