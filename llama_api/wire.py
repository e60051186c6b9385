"""The client's connection: a body read within its limits, and whether the client is still there."""

import _socket
import threading
from collections.abc import Callable
from typing import Any

from flask import Request
from gunicorn.http.errors import ParseException
from werkzeug.exceptions import BadRequest, ClientDisconnected

from .concurrency import Watchdog

BODY_SECONDS = 15.0  # for a whole body: no worker bounds it
SEND_SECONDS = 30.0  # that a client may leave what we send unread
_PEEK = _socket.MSG_PEEK | _socket.MSG_DONTWAIT


class BodyTooLarge(Exception):
    """The body is longer than MAX_BODY_BYTES."""


class BodyTimeout(Exception):
    """The body did not come within BODY_SECONDS."""


class NotJSON(Exception):
    """The Content-Type is not JSON."""


class ClientGone(Exception):
    """The client closed its connection before its body was complete."""


def read_json_body(request: Request, limit: int, watchdog: Watchdog) -> bytes:
    """The body of a JSON request. Raises BodyTooLarge, NotJSON, BodyTimeout or ClientGone; ``limit`` is in bytes."""
    if (request.content_length or 0) > limit:
        raise BodyTooLarge(f"The body may have at most {limit} bytes.")
    if not request.is_json:
        raise NotJSON("Send JSON with the header `Content-Type: application/json`.")
    request.max_content_length = limit + 1  # werkzeug cuts a chunked body there, without a word
    late = threading.Event()
    client = request.environ.get("gunicorn.socket")  # the watchdog's thread knows no current request
    try:
        with watchdog.limit(BODY_SECONDS, lambda: _give_up(client, late)):
            body = request.get_data(cache=False)
    except ParseException:
        if not late.is_set():
            raise BadRequest("The body's transfer encoding is broken.") from None
    except (ClientDisconnected, OSError):
        if not late.is_set():
            raise ClientGone("The connection ended before the body was complete.") from None
    if late.is_set():
        raise BodyTimeout(f"The body was not complete after {BODY_SECONDS:g} s.")
    if len(body) > limit:
        raise BodyTooLarge(f"The body may have at most {limit} bytes.")
    return body


def gone_check(environ: dict[str, Any]) -> Callable[[], bool]:
    """A function that tells whether the client of this request has closed its connection.

    A server that does not hand over its socket (``gunicorn.socket``) leaves that unknown.
    """
    client: Any = environ.get("gunicorn.socket")

    def gone() -> bool:
        # A peek on a plain socket object: gevent's own would wait for data.
        peek = _socket.socket(fileno=client.fileno())
        try:
            return peek.recv(1, _PEEK) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True
        finally:
            peek.detach()

    return gone if client is not None else lambda: False


def bound_sending(environ: dict[str, Any]) -> None:
    """Have a write to a client that no longer reads fail after SEND_SECONDS."""
    if (client := environ.get("gunicorn.socket")) is not None:
        client.settimeout(SEND_SECONDS)


def _give_up(client: Any, late: threading.Event) -> None:
    late.set()
    if client is not None:
        client.shutdown(_socket.SHUT_RD)
