"""Connections to Ollama that another thread can cut at any time, even before the first byte."""

import threading
from typing import Any

from requests import PreparedRequest, Response
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import ConnectionPool, HTTPConnectionPool, HTTPSConnectionPool

from ..sockets import quiet
from ..trace_context import TraceContext
from .chunked import EagerResponse


class Call:
    """One exchange with Ollama, which another thread can cut at any time; ``trace`` is its span."""

    def __init__(self, trace: TraceContext | None = None) -> None:
        self.trace = trace
        self.body: EagerResponse | None = None  # of the response, bypassing urllib3's work for each read
        self._lock = threading.Lock()
        self._socket: Any = None
        self.connected = False
        self.cut_by: type[Exception] | None = None

    def attach(self, sock: Any) -> None:
        """Attach the socket that carries the exchange."""
        with self._lock:
            self._socket, self.connected = sock, True
        if self.cut_by:
            self._shut()

    def detach(self) -> Any:
        """Detach the socket, which may soon carry another exchange."""
        with self._lock:
            sock, self._socket = self._socket, None
        return sock

    def cut(self, reason: type[Exception]) -> None:
        """End the exchange: a blocked read fails at once and Ollama sees the disconnect."""
        self.cut_by = self.cut_by or reason
        self._shut()

    def _shut(self) -> None:
        with self._lock:
            if self._socket is not None:
                try:
                    self._socket.shutdown(2)
                except OSError:
                    pass  # already closed


current = threading.local()  # .call: the exchange that this thread is sending


class _Attaching:
    """Attaches the socket to the current call before anything is sent, as Ollama may be slow to read and to answer.

    From then on the watchdog bounds the call; under gevent a socket timeout would cost a timer for each read.
    """

    sock: Any
    _body: EagerResponse | None = None
    _held: bytearray | None = None

    @property
    def is_connected(self) -> bool:
        """Whether a pooled connection can still be used; urllib3's own check costs 0.1 ms under gevent."""
        return self.sock is not None and quiet(self.sock) is True

    def request(self, *args: Any, **kwargs: Any) -> None:
        """Send head and body together: sent apart, they would wake Ollama twice."""
        self._held = bytearray()
        super().request(*args, **kwargs)  # type: ignore[misc]
        held, self._held = self._held, None
        if self.sock is None:
            super().connect()  # type: ignore[misc]
        if call := getattr(current, "call", None):
            call.attach(self.sock)
            self.sock.settimeout(None)
        super().send(held)  # type: ignore[misc]

    def send(self, data: Any) -> None:
        if self._held is not None and isinstance(data, bytes):
            self._held += data
        else:
            super().send(data)  # type: ignore[misc]

    def getresponse(self) -> Any:
        sock = self.sock
        response = super().getresponse()  # type: ignore[misc]
        if call := getattr(current, "call", None):
            call.body = self._body
        sock.settimeout(None)
        return response

    def response_class(self, *args: Any, **kwargs: Any) -> EagerResponse:
        """The class of http.client's responses."""
        self._body = EagerResponse(*args, **kwargs)
        return self._body


class _Connection(_Attaching, HTTPConnection):  # type: ignore[misc]
    pass


class _TLSConnection(_Attaching, HTTPSConnection):  # type: ignore[misc]
    pass


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection


class _TLSPool(HTTPSConnectionPool):
    ConnectionCls = _TLSConnection


class CuttingAdapter(HTTPAdapter):
    """A pool of such connections to one Ollama, for a requests.Session."""

    _pool: ConnectionPool | None = None

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = {"http": _Pool, "https": _TLSPool}

    def get_connection_with_tls_context(self, *args: Any, **kwargs: Any) -> ConnectionPool:
        """The pool of the one Ollama, looked up once."""
        if self._pool is None:
            self._pool = super().get_connection_with_tls_context(*args, **kwargs)
        return self._pool

    def build_response(self, req: PreparedRequest, resp: Any) -> Response:
        """A response with the parts that the client reads, status and body, without cookies and headers."""
        response = Response()
        response.status_code, response.raw, response.request = resp.status, resp, req
        return response
