"""The state of a socket, without reading from it."""

import _socket
import select
from typing import Any

from . import native

_PEEK = _socket.MSG_PEEK | _socket.MSG_DONTWAIT


def quiet(sock: Any) -> bool | None:
    """True while the other side is connected and has sent nothing, None when it has sent something; False once closed.

    Never waits. A plain socket object on the same descriptor peeks: gevent's own would wait for data.
    """
    peek = _socket.socket(fileno=sock.fileno())
    try:
        return None if peek.recv(1, _PEEK) else False
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        peek.detach()


def hung_up(sock: Any) -> bool:
    """Whether the other side has closed the connection, or its half of it; what it sent before does not matter."""
    if sock.fileno() < 0:
        return True
    poll = native.poll()  # gevent's own lacks POLLRDHUP; this one does not wait
    poll.register(sock, select.POLLRDHUP)  # POLLHUP and POLLERR are always reported
    return bool(poll.poll(0))


def stop_reading(sock: Any) -> None:
    """Make reads from ``sock`` return its end, for TLS sockets too, whose own shutdown would also end writing."""
    plain = _socket.socket(fileno=sock.fileno())
    try:
        plain.shutdown(_socket.SHUT_RD)
    except OSError:
        pass  # already closed
    finally:
        plain.detach()
