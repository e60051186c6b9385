"""Every failure of a request as an RFC 9457 problem, or in the format of the API whose URL was called."""

import logging
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any

import orjson
from flask import Flask, Response, g, request
from werkzeug.exceptions import HTTPException, NotFound

from ..faults import HTTP_SLUGS, INTERNAL_ERROR, Fault, fault_of

logger = logging.getLogger(__name__)

Writer = Callable[[Fault, Exception], Response]  # writes a failure in the format of one API


def init_app(app: Flask, writers: Mapping[str, Writer]) -> None:
    """Handle every exception of ``app``; ``writers`` are those of foreign APIs, by the prefix of their URLs."""
    def respond(error: Exception) -> Response:
        fault = note(error)
        path = f"/{request.path.strip('/')}/"  # so that a prefix matches whole segments
        writer = next((writer for prefix, writer in writers.items() if path.startswith(prefix)), write)
        response = writer(fault, error)
        if isinstance(error, HTTPException):  # the headers that belong to it: Allow, Retry-After and the like
            for name, value in error.get_headers(request.environ):
                if name.lower() not in ("content-type", "content-length"):
                    response.headers[name] = value
        if fault.status == 401:
            response.headers["WWW-Authenticate"] = "Bearer"
        if fault.retry_after is not None and response.status_code == 503:
            response.headers.setdefault("Retry-After", str(fault.retry_after))
        return response

    app.register_error_handler(Exception, respond)


def write(fault: Fault, error: Exception) -> Response:
    """The problem response of ``fault``."""
    return Response(orjson.dumps(problem_of(fault)), fault.status, mimetype="application/problem+json")


def problem_of(fault: Fault) -> dict[str, Any]:
    """The problem object of ``fault`` for the current request."""
    problem: dict[str, Any] = {
        "type": f"/problems/{fault.slug}", "title": fault.title, "status": fault.status, "detail": fault.detail,
        "instance": _clean(request.path), "request_id": g.record["request_id"]}
    if fault.errors is not None:
        problem["errors"] = fault.errors
    return problem


def note(error: Exception) -> Fault:
    """The fault of ``error``; its slug goes into the request's record, and an internal error into the log."""
    fault = fault_for(error, request.method)
    if fault.slug == INTERNAL_ERROR[1]:
        logger.error("internal error", exc_info=error, extra={"fields": {"request_id": g.record["request_id"]}})
    g.record["error"] = fault.slug
    return fault


def fault_for(error: Exception, method: str) -> Fault:
    """The fault of ``error``, those of werkzeug included, in a request of ``method``."""
    if not isinstance(error, HTTPException) or (error.code or 0) < 400:
        return fault_of(error)
    status = error.code or 500
    title = HTTPStatus(status).phrase
    slug = HTTP_SLUGS.get(status, title.lower().replace(" ", "-"))
    return Fault(status, slug, title, _http_detail(error, method))


def _http_detail(error: HTTPException, method: str) -> str:
    if isinstance(error, NotFound):
        return "There is nothing at this URL; /docs lists the URLs of this service."
    if error.code == 405:
        allowed = ", ".join(sorted(getattr(error, "valid_methods", None) or []))
        return f"This URL does not take {_clean(method)}; it takes {allowed}."
    if error.code == 429:
        limit = str(error.description).replace(" per 1 ", " per ")
        return f"You exceeded the rate limit of {limit}; retry after the number of seconds in `Retry-After`."
    return f"{error.description or HTTPStatus(error.code or 400).phrase}"


def _clean(text: str) -> str:
    """``text`` without lone surrogates, which no response can carry."""
    return text.encode("utf-8", "replace").decode()
