"""The client's connection: a body read within its limits, and whether the client is still there."""

from collections.abc import Callable
from typing import Any

from flask import Request
from gunicorn.http.errors import ParseException

from ..errors import BodyTimeout, BodyTooLarge, ClientGone, MalformedJSON, NotJSON
from ..sockets import hung_up, stop_reading
from ..waiting import Watchdog

BODY_SECONDS = 15.0  # for a whole body: no worker bounds it


def read_json_body(request: Request, limit: int, watchdog: Watchdog, any_type: bool = False) -> bytes:
    """The body of a JSON request. Raises BodyTooLarge, NotJSON, BodyTimeout or ClientGone; ``limit`` is in bytes.

    With ``any_type`` any Content-Type will do, except for a page of another site (it sends an Origin): browsers let
    such a page post text without asking, but JSON only where CORS_ORIGINS has it.
    """
    environ = request.environ
    length = request.content_length  # None for a chunked body
    if length is not None and length > limit:
        raise BodyTooLarge(limit)
    if environ.get("CONTENT_TYPE") != "application/json" and not request.is_json and (
            not any_type or "HTTP_ORIGIN" in environ):
        raise NotJSON
    deadline = _Deadline(environ.get("gunicorn.socket"))
    handle = watchdog.watch(BODY_SECONDS, deadline.strike)
    try:
        # Straight from the server's stream, which ends where the body does: werkzeug's takes ten times as long.
        body: bytes = environ["wsgi.input"].read(limit + 1 if length is None else length)
    except (ParseException, OSError) as error:
        if not deadline.struck and not isinstance(error, OSError):
            raise MalformedJSON("its transfer encoding is broken") from None
        body, length = b"", 1
    finally:
        watchdog.forget(handle)
    if length is not None and len(body) < length:
        raise BodyTimeout(BODY_SECONDS) if deadline.struck else ClientGone()
    if len(body) > limit:
        raise BodyTooLarge(limit)
    return body


def gone_check(environ: dict[str, Any]) -> Callable[[], bool]:
    """A function that tells whether the client of this request has closed its connection, or its half of it.

    A client that has closed one half, and would still read, cannot be told from one that is gone. Under a server that
    does not hand over its socket (``gunicorn.socket``) nobody is ever seen to leave.
    """
    client = environ.get("gunicorn.socket")
    return lambda: client is not None and hung_up(client)


class _Deadline:
    """The end of a client's time to send its body."""

    __slots__ = ("struck", "_client")

    def __init__(self, client: Any):
        self.struck, self._client = False, client

    def strike(self) -> None:
        self.struck = True
        if self._client is not None:
            stop_reading(self._client)
