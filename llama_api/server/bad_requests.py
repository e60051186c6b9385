"""Refusals of data that never becomes a request, written as problems (RFC 9457) like every other error."""

import logging
import socket
from typing import Any

import gevent
import orjson
from gunicorn.http import errors

from ..faults import UNREADABLE, UNREADABLE_DETAIL, Fault, fault_of
from ..logs import new_request_id

logger = logging.getLogger(__name__)

LINGER_SECONDS = 1.0
PLAIN = "This port speaks TLS; use https:// instead."
# The statuses of gunicorn's own errors; every other ParseException is 400.
_STATUSES = ((errors.LimitRequestLine, 414, "URI Too Long"), (errors.ForbiddenProxyRequest, 403, "Forbidden"),
             (errors.LimitRequestHeaders, 431, "Request Header Fields Too Large"),
             (errors.ExpectationFailed, 417, "Expectation Failed"),
             (errors.UnsupportedTransferCoding, 501, "Not Implemented"))


def refuse_error(client: Any, error: BaseException) -> None:
    """Answer what gunicorn could not parse, or an internal error outside of a request."""
    if not isinstance(error, errors.ParseException):
        refuse(client, fault_of(error), error)
        return
    status, title = next((row[1:] for row in _STATUSES if isinstance(error, row[0])), (400, "Bad Request"))
    refuse(client, Fault(status, UNREADABLE[1], title, UNREADABLE_DETAIL))


def refuse_plain(client: Any) -> None:
    """Answer plain HTTP on a TLS port."""
    refuse(client, Fault(*UNREADABLE, PLAIN))


def refuse(client: Any, fault: Fault, error: BaseException | None = None) -> None:
    """Write a problem and log it, without the bytes received: after a wrong length they may be part of a prompt."""
    request_id = new_request_id()
    logger.log(
        logging.ERROR if fault.status >= 500 else logging.INFO, "refused with %s %s", fault.status, fault.title,
        exc_info=error, extra={"fields": {
            "request_id": request_id, "method": None, "path": None, "status": fault.status, "duration_ms": 0.0,
            "client": _address(client), "error": fault.slug}})
    body = orjson.dumps({
        "type": f"/problems/{fault.slug}", "title": fault.title, "status": fault.status, "instance": "/",
        "detail": fault.detail, "request_id": request_id})
    head = (f"HTTP/1.1 {fault.status} {fault.title}\r\nConnection: close\r\nContent-Type: application/problem+json\r\n"
            f"X-Request-ID: {request_id}\r\nContent-Length: {len(body)}\r\n\r\n")
    try:
        client.sendall(head.encode() + body)
        # A connection closed with unread data is reset, and the client might not see the answer (RFC 9112 §9.6).
        client.shutdown(socket.SHUT_WR)
        with gevent.Timeout(LINGER_SECONDS, False):
            while client.recv(65536):
                pass
    except OSError:
        pass  # the client has gone


def _address(client: Any) -> str | None:
    try:
        return str(client.getpeername()[0])
    except (OSError, IndexError):
        return None
