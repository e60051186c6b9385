"""gunicorn's gevent worker, which loses no connection when it stops and refuses what is no HTTP by a problem."""

import _socket
import logging
from functools import partial
from typing import Any

import gevent
import gevent.socket
import orjson
from gevent.server import StreamServer
from gunicorn import util
from gunicorn.workers.ggevent import GeventWorker

from ..logs import new_request_id

logger = logging.getLogger(__name__)


class _Listener:
    """What the handler of a connection asks of its listener, which may be closed by then."""

    def __init__(self, listener: Any):
        self._name = listener.getsockname()

    def getsockname(self) -> Any:
        return self._name


class _Server(StreamServer):
    def close(self) -> None:
        """Take what the kernel has connected already before the socket is closed: it would reset those."""
        if not self.closed:
            self.stop_accepting()
            # gevent's own socket would be closed a turn of the event loop later, with more connections come.
            listener = _socket.socket(fileno=self.socket.detach())
            while not self.full() and (accepted := _accepted(listener)) is not None:
                self.do_handle(*accepted)
            listener.close()
        super().close()


def _accepted(listener: Any) -> tuple[Any, Any] | None:
    try:
        descriptor, address = listener._accept()
    except OSError:  # BlockingIOError: nobody is there
        return None
    return gevent.socket.socket(listener.family, listener.type, listener.proto, fileno=descriptor), address


def _write_problem(sock: Any, status: int, reason: str, message: str) -> None:
    """Answer what gunicorn could not read as HTTP as every other error is answered (RFC 9457), and close."""
    request_id = new_request_id()
    logger.info("refused with %s %s", status, reason, extra={"fields": {
        "request_id": request_id, "method": None, "path": None, "status": status, "duration_ms": 0.0,
        "client": _address(sock)}})
    body = orjson.dumps({
        "type": f"/problems/{reason.lower().replace(' ', '-')}", "title": reason, "status": status, "instance": "/",
        "detail": "This could not be read as an HTTP request: correct its request line, its headers or its framing.",
        "request_id": request_id})
    head = (f"HTTP/1.1 {status} {reason}\r\nConnection: close\r\nContent-Type: application/problem+json\r\n"
            f"X-Request-ID: {request_id}\r\nContent-Length: {len(body)}\r\n\r\n")
    util.write_nonblock(sock, head.encode() + body)


def _address(sock: Any) -> str | None:
    try:
        return str(sock.getpeername()[0])
    except (OSError, IndexError):
        return None


util.write_error = _write_problem  # gunicorn offers no hook for what it refuses by itself
# It would log the bytes that it could not read, and after a wrong Content-Length those are the end of a prompt.
logging.getLogger("gunicorn.error").addFilter(lambda record: not str(record.msg).startswith("Invalid request from"))


class Worker(GeventWorker):
    """The worker of gunicorn.conf.py."""

    _server: _Server | None = None

    def server_class(self, listener: Any, *, spawn: Any, **_: Any) -> StreamServer:
        """The server on ``listener``; gunicorn calls this and takes care of the rest."""
        self._server = _Server(listener, handle=partial(self.handle, _Listener(listener)), spawn=spawn)
        if self.cfg.workers > 1:
            self._server.max_accept = 1  # so that one worker does not take all
        return self._server

    def handle_exit(self, sig: Any, frame: Any) -> None:
        """At SIGTERM say what the stop waits for, and accept no more; gunicorn's own loop sees it a second later."""
        super().handle_exit(sig, frame)
        if self._server is not None:
            under_way = self.wsgi.extensions["llama_api"].recorder.under_way
            self.log.info("Worker %s stops and waits for %s requests", self.pid, under_way)
            gevent.spawn(self._server.close)
