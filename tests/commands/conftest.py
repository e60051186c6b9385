"""A server and a stranger, for the commands to call."""

import http.server
import threading
from contextlib import ExitStack

import pytest


@pytest.fixture(scope="module")
def api(shared_double, shared_serve):
    """One server for the tests that leave its settings alone."""
    return shared_serve(shared_double, parallel=2)


@pytest.fixture
def answering():
    """A factory: ``answering(body)`` is the URL of something that answers every request by 200 and ``body``."""
    with ExitStack() as stack:
        yield lambda body: stack.enter_context(Stranger(body))


class Stranger:
    """A server that is neither this service nor an Ollama."""

    def __init__(self, body):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                self.send_response(200)
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_GET

            def log_message(self, *_):
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=[0.01], daemon=True)

    def __enter__(self):
        self._thread.start()
        return "http://127.0.0.1:%d" % self._server.server_address[1]

    def __exit__(self, *_):
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
