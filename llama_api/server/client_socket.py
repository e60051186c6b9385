"""A client's connection: a TLS handshake within a time limit, and writes that last as long as the client reads."""

import errno
import fcntl
import struct
import termios
from socket import MSG_PEEK
from ssl import SSLContext
from typing import Any

import gevent
import gevent.socket
import gevent.ssl

SEND_SECONDS = 30.0  # for which a client may read nothing
HANDSHAKE_SECONDS = 5.0
HANDSHAKE = b"\x16"  # the first byte of TLS (RFC 8446 §5.1, ContentType)


class PlainHTTP(Exception):
    """The client does not speak TLS. ``client`` is its socket."""

    def __init__(self, client: Any):
        super().__init__(client)
        self.client = client


class _Patient:
    """Writes that last as long as the client reads: the time without progress is limited, not the whole write."""

    send_seconds = SEND_SECONDS

    def sendall(self: Any, data: Any, flags: int = 0) -> None:
        """Send all of ``data``. Raises ConnectionResetError when the client reads nothing for ``send_seconds``."""
        self.settimeout(0.0)
        try:
            if (sent := self._send_at_once(data, flags)) == len(data):
                return
            rest = memoryview(data)[sent:]
            self.settimeout(self.send_seconds)
            while rest:
                unread = self.unread()
                try:
                    rest = rest[self.send(rest, flags):]
                except TimeoutError:
                    # The kernel accepts nothing until a third of its buffer is free, which a slow reader delays.
                    if self.unread() >= unread:
                        raise ConnectionResetError(errno.ECONNRESET, "the client does not read") from None
        finally:
            self.settimeout(None)

    def _send_at_once(self: Any, data: Any, flags: int) -> int:
        """Send as many bytes as the kernel accepts without waiting, nearly always all; returns their number."""
        try:
            sent: int = self.send(data, flags)
        except BlockingIOError:
            return 0
        return sent

    def unread(self: Any) -> int:
        """Bytes that the kernel holds because the client has no room for them (tcp(7), SIOCOUTQ)."""
        held: int = struct.unpack("i", fcntl.ioctl(self.fileno(), termios.TIOCOUTQ, b"    "))[0]
        return held


class Client(_Patient, gevent.socket.socket):
    """The socket of a client."""


class TLSClient(_Patient, gevent.ssl.SSLSocket):
    """The socket of a client that speaks TLS."""


def connected(accepted: Any, context: SSLContext | None, suppress_ragged_eofs: bool = True) -> Any:
    """The client on the socket ``accepted``, its handshake done where there is a ``context``.

    ``accepted`` gives up its descriptor. Raises PlainHTTP, or OSError when the handshake fails or comes too late.
    """
    client: Any = Client(accepted.family, accepted.type, accepted.proto, fileno=accepted.detach())
    if context is None:
        return client
    context.sslsocket_class = TLSClient
    try:
        with gevent.Timeout(HANDSHAKE_SECONDS, TimeoutError):
            if client.recv(1, MSG_PEEK) not in (HANDSHAKE, b""):
                raise PlainHTTP(client)
            client = context.wrap_socket(client, server_side=True, do_handshake_on_connect=False,
                                         suppress_ragged_eofs=suppress_ragged_eofs)
            client.do_handshake()
    except OSError:
        client.close()
        raise
    return client
