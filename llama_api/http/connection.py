"""The client's connection: a body read within its limits, and whether the client is still there."""

from collections.abc import Callable
from typing import Any

from flask import Request
from gunicorn.http.errors import ParseException

from ..errors import BodyTimeout, BodyTooLarge, ClientGone, MalformedJSON, NotJSON
from ..sockets import hung_up, stop_reading
from ..waiting import Watchdog

BODY_SECONDS = 15.0  # for a whole body, which no worker limits


def read_json_body(request: Request, limit: int, watchdog: Watchdog, any_type: bool = False) -> bytes:
    """The body of a JSON request. Raises BodyTooLarge, NotJSON, BodyTimeout or ClientGone; ``limit`` is in bytes.

    With ``any_type`` any Content-Type is accepted, except from a page of another site (which sends an Origin): browsers
    let such a page post text without a preflight, but JSON only if CORS_ORIGINS has its origin.
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
        # Read the server's stream directly, as it ends with the body: werkzeug's takes ten times as long.
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
    """A function that says whether the client of this request has closed its connection, or its half of it.

    A client that has closed one half but still reads cannot be distinguished from one that has left. Under a server
    that does not provide its socket (``gunicorn.socket``) no client is seen to leave.
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
