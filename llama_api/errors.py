"""Every error's way to the client: one table from exception to RFC 9457 problem."""

import logging
from http import HTTPStatus
from typing import Any

import orjson
from flask import Flask, Response, g, request
from marshmallow import ValidationError
from werkzeug.exceptions import HTTPException, NotFound

from .core.flights import ReaderGone
from .upstreams.queue import GateClosed
from .ollama.protocol import ModelNotFound, OllamaBusy, OllamaError, OllamaTimeout, OllamaUnavailable, PromptTooLong
from .api.schemas import MalformedJSON
from .http.security import Unauthorized, UntrustedHost
from .core.service import NotCached
from .http.connection import BodyTimeout, BodyTooLarge, ClientGone, NotJSON

logger = logging.getLogger(__name__)

# Exception, status, slug, title. A subclass that is not listed takes its parent's row.
TABLE: tuple[tuple[type[Exception], int, str, str], ...] = (
    (MalformedJSON, 400, "malformed-json", "The body is not one JSON object"),
    (UntrustedHost, 400, "untrusted-host", "The Host header is not one of this service's"),
    (Unauthorized, 401, "unauthorized", "The API key is missing or wrong"),
    (BodyTimeout, 408, "request-timeout", "The request's body came too slowly"),
    (BodyTooLarge, 413, "body-too-large", "The request's body is too large"),
    (NotJSON, 415, "unsupported-media-type", "The Content-Type is not JSON"),
    (ValidationError, 422, "invalid-request", "A field is wrong"),
    (PromptTooLong, 422, "prompt-too-long", "The prompt does not fit the model's context window"),
    (ReaderGone, 499, "client-closed-request", "The client closed the connection"),
    (ClientGone, 499, "client-closed-request", "The client closed the connection"),
    (OllamaError, 502, "ollama-error", "Ollama failed"),
    (OllamaUnavailable, 503, "ollama-unavailable", "Ollama cannot be reached"),
    (ModelNotFound, 503, "model-not-found", "Ollama does not have the model"),
    (OllamaBusy, 503, "overloaded", "The model is busy"),
    (GateClosed, 503, "overloaded", "The model is busy"),
    (OllamaTimeout, 504, "ollama-timeout", "Ollama took too long"),
    (NotCached, 504, "not-cached", "There is no stored answer"),
)
_ROWS = {row[0]: row for row in TABLE}
HTTP_SLUGS = {404: "not-found", 405: "method-not-allowed", 413: "body-too-large", 429: "rate-limited"}
INTERNAL_ERROR = (500, "internal-error", "A fault of this service")  # whatever nobody foresaw
ERRORS_SHOWN = 20  # faults listed in one answer: a hostile body can have thousands
NAME_SHOWN = 100  # characters of a field's name


def init_app(app: Flask) -> None:
    """Answer every exception of ``app`` with a problem."""
    app.register_error_handler(Exception, respond)


def respond(error: Exception) -> Response:
    """The problem response of ``error``; the headers that belong to it (Allow, Retry-After …) are kept."""
    problem = describe(error)
    status = problem["status"]
    response = Response(orjson.dumps(problem), status, mimetype="application/problem+json")
    if isinstance(error, HTTPException):
        for name, value in error.get_headers(request.environ):
            if name.lower() not in ("content-type", "content-length"):
                response.headers[name] = value
    if status == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    if (retry_after := getattr(error, "retry_after", None)) is not None and status == 503:
        response.headers["Retry-After"] = str(retry_after)
    return response


def describe(error: Exception) -> dict[str, Any]:
    """The problem object of ``error``; its slug is noted for the request's record."""
    status, slug, title, detail = _classify(error)
    g.record["error"] = slug
    problem: dict[str, Any] = {
        "type": f"/problems/{slug}", "title": title, "status": status, "detail": detail,
        "instance": _clean(request.path), "request_id": g.record["request_id"]}
    if isinstance(error, ValidationError):
        problem["errors"] = _faults(error)
    return problem


def slug_of(error: Exception) -> str:
    """The slug of an exception."""
    return _classify(error)[1]


def _classify(error: Exception) -> tuple[int, str, str, str]:
    for kind in type(error).__mro__:
        if kind in _ROWS:
            _, status, slug, title = _ROWS[kind]
            return status, slug, title, _detail(error, title)
    if isinstance(error, HTTPException) and error.code is not None and error.code >= 400:
        title = HTTPStatus(error.code).phrase
        return error.code, HTTP_SLUGS.get(error.code, title.lower().replace(" ", "-")), title, _http_detail(error)
    logger.error("internal error", exc_info=error, extra={"fields": {"request_id": g.record["request_id"]}})
    return (*INTERNAL_ERROR,
            "The service failed; its log has the details under this request_id. Try again, and report it if it lasts.")


def _detail(error: Exception, title: str) -> str:
    if isinstance(error, MalformedJSON):
        return f"The body must be one JSON object, but {error}."
    if isinstance(error, ValidationError):
        names = ", ".join(list(_faults(error))[:3])
        return f"Correct what `errors` says of: {names}."
    if isinstance(error, GateClosed):
        return f"The model is busy: {error}. Try again in {error.retry_after} s."
    if isinstance(error, NotCached):
        return "only-if-cached forbids to generate and no fresh answer is stored; send the request without it."
    return str(error) or f"{title}."


def _http_detail(error: HTTPException) -> str:
    if isinstance(error, NotFound):
        return "There is nothing at this URL; /docs lists what there is."
    if error.code == 405:
        allowed = ", ".join(sorted(getattr(error, "valid_methods", None) or []))
        return f"This URL does not take {_clean(request.method)}; it takes {allowed}."
    if error.code == 429:
        return f"More than {error.description} came from you; wait for as long as Retry-After says."
    return f"{error.description or HTTPStatus(error.code or 400).phrase}"


def _faults(error: ValidationError) -> dict[str, list[str]]:
    messages = error.messages_dict
    return {_clean(str(name))[:NAME_SHOWN]: [str(text) for text in (faults if isinstance(faults, list) else [faults])]
            for name, faults in list(messages.items())[:ERRORS_SHOWN]}


def _clean(text: str) -> str:
    """``text`` without lone surrogates, which no response can carry."""
    return text.encode("utf-8", "replace").decode()
