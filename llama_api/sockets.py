"""What a socket tells without being read."""

import _socket
from typing import Any

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
