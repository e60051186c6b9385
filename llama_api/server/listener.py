"""gevent's StreamServer, which loses no connection when it closes."""

import _socket
from typing import Any

import gevent.socket
from gevent.server import StreamServer


class ListenerName:
    """The listener as the handler of a connection sees it; the real one may be closed by then."""

    def __init__(self, listener: Any):
        self._name = listener.getsockname()

    def getsockname(self) -> Any:
        """The address that it listened on, as from ``socket.getsockname``."""
        return self._name


class Server(StreamServer):
    """Accepts connections until it is closed."""

    def close(self) -> None:
        """Accept what the kernel has already connected before the socket is closed, which would reset it."""
        if not self.closed:
            self.stop_accepting()
            # gevent closes its own socket one loop iteration later, when more connections may have arrived.
            listener = _socket.socket(fileno=self.socket.detach())
            while not self.full() and (accepted := _accepted(listener)) is not None:
                self.do_handle(*accepted)
            listener.close()
        super().close()


def _accepted(listener: Any) -> tuple[Any, Any] | None:
    try:
        descriptor, address = listener._accept()
    except OSError:  # BlockingIOError: no connection is waiting
        return None
    return gevent.socket.socket(listener.family, listener.type, listener.proto, fileno=descriptor), address
