"""Connections to Redis on top of redis-py's internals.

An operation must end by one deadline that includes connecting, logging in, selecting, sending and receiving.
redis-py limits only each single step, and resolves the host name without any limit. These parts of it are used:

``connect`` (public) is called once for every operation, connected or not: there the deadline begins;
``_connect`` (private) makes the socket: here to addresses resolved beforehand, and wrapped in a DeadlineSocket;
``settimeout(0)`` on that socket says that redis-py only polls whether the connection can be used again.
"""

import socket
import ssl
import time
from collections.abc import Callable
from functools import cache
from typing import Any

import redis

BUDGET = 0.08  # seconds for which an operation may wait for the server, connecting included
GRACE = 0.005  # minimum seconds, for a process that was suspended


class DeadlineSocket:
    """A socket whose waits all end after the ``left`` seconds."""

    def __init__(self, sock: Any, left: Callable[[], float]):
        self._sock, self._left, self._polling = sock, left, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def settimeout(self, seconds: float | None) -> None:
        """Zero means polling, as redis-py does before it reuses a connection; else the deadline applies."""
        self._polling = seconds == 0

    def recv(self, size: int) -> bytes:
        return self._receive(self._sock.recv, size)

    def recv_into(self, buffer: Any, *sizes: int) -> int:
        return self._receive(self._sock.recv_into, buffer, *sizes)

    def sendall(self, data: bytes) -> None:
        self._sock.settimeout(self._left())
        self._sock.sendall(data)

    def _receive(self, receive: Any, *args: Any) -> Any:
        """Receive data that arrives by the deadline, or is present afterwards: a busy loop may see its timer first."""
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
    """A connection to addresses resolved beforehand, as name resolution may take seconds."""

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
    """The TLS context, made once, as reading the system's certificates takes longer than an operation may."""
    return ssl.create_default_context()
