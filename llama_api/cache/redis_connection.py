"""The private ground of redis-py that the store stands on: where a connection is made, and what its socket may do.

An operation must end by one deadline, whatever it takes: to connect, to log in, to select, to send, to receive.
redis-py bounds only each single step, and looks the host's name up without any bound. What is used of it here:

``connect`` (public) is called once for every operation, connected or not: there its time begins;
``_connect`` (private) makes the socket: here to addresses looked up beforehand, and wrapped in a DeadlineSocket;
``settimeout(0)`` on that socket says that redis-py only polls whether the connection can be used again.
"""

import socket
import ssl
import time
from collections.abc import Callable
from functools import cache
from typing import Any

import redis

BUDGET = 0.08  # seconds an operation may wait for the server in all, connecting included
GRACE = 0.005  # seconds it waits at least, for a process that was itself held up


class DeadlineSocket:
    """A socket whose every wait ends when the ``left`` seconds have passed."""

    def __init__(self, sock: Any, left: Callable[[], float]):
        self._sock, self._left, self._polling = sock, left, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def settimeout(self, seconds: float | None) -> None:
        """Zero polls, as redis-py does before it uses a connection again; else the deadline decides."""
        self._polling = seconds == 0

    def recv(self, size: int) -> bytes:
        return self._receive(self._sock.recv, size)

    def recv_into(self, buffer: Any, *sizes: int) -> int:
        return self._receive(self._sock.recv_into, buffer, *sizes)

    def sendall(self, data: bytes) -> None:
        self._sock.settimeout(self._left())
        self._sock.sendall(data)

    def _receive(self, receive: Any, *args: Any) -> Any:
        """Receive what comes by the deadline, or is there afterwards: a busy event loop may see its timer first."""
        try:
            self._sock.settimeout(0 if self._polling else self._left())
            return receive(*args)
        except TimeoutError:
            self._sock.settimeout(0)
            try:
                return receive(*args)
            except (BlockingIOError, ssl.SSLWantReadError):
                raise TimeoutError("timed out") from None


class TcpConnection(redis.Connection):
    """A connection to addresses looked up beforehand, for a name server may take seconds to say nothing."""

    _deadline = 0.0

    def __init__(self, addresses: list[tuple[int, Any]], **options: Any):
        self._addresses = addresses
        super().__init__(**options)

    def connect(self) -> None:
        self._deadline = time.monotonic() + BUDGET
        super().connect()

    def _left(self) -> float:
        """Seconds this operation may still wait."""
        return max(self._deadline - time.monotonic(), GRACE)

    def _connect(self) -> Any:
        failure = OSError(f"the name {self.host} was not found")
        for family, address in list(self._addresses):
            sock = socket.socket(family, socket.SOCK_STREAM)
            try:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.settimeout(self._left())
                sock.connect(address)
                return DeadlineSocket(self._secured(sock), self._left)
            except BaseException as error:
                sock.close()
                if not isinstance(error, OSError):
                    raise
                failure = error
        raise failure

    def _secured(self, sock: socket.socket) -> socket.socket:
        return sock


class TlsConnection(TcpConnection):
    """The same over TLS."""

    def _secured(self, sock: socket.socket) -> socket.socket:
        return _tls_context().wrap_socket(sock, server_hostname=self.host)


@cache
def _tls_context() -> ssl.SSLContext:
    """Made once: to read the system's certificates takes longer than an operation may."""
    return ssl.create_default_context()
