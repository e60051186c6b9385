"""A small HTTP server in a thread of this process, for whatever is neither this service nor an Ollama."""

import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    """Subclasses say what is served; nothing is printed."""

    def read_body(self):
        """The body of the request."""
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def log_message(self, *words):
        """Print nothing."""


@contextmanager
def listening(handler, tls=None):
    """A server on a free port, whose requests go to ``handler``, a class; it speaks TLS by the context ``tls``."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=[0.01], daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
