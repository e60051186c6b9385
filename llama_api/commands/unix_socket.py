"""HTTP over a Unix socket, for requests."""

import socket
from functools import partial
from typing import Any

from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection
from urllib3.connectionpool import HTTPConnectionPool
from urllib3.exceptions import NewConnectionError


class UnixAdapter(HTTPAdapter):
    """Carries every request of a requests.Session to the socket at ``path``, whatever host its URL names."""

    def __init__(self, path: str):
        self._pool = HTTPConnectionPool("localhost")
        self._pool.ConnectionCls = partial(_UnixConnection, path=path)  # type: ignore[assignment]
        super().__init__()

    def get_connection_with_tls_context(self, *_: Any, **__: Any) -> HTTPConnectionPool:
        return self._pool

    def close(self) -> None:
        self._pool.close()
        super().close()


class _UnixConnection(HTTPConnection):
    def __init__(self, *args: Any, path: str, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._path = path

    def _new_conn(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.settimeout(self.timeout)
            sock.connect(self._path)
        except OSError as error:
            sock.close()
            raise NewConnectionError(self, str(error)) from error
        return sock
