"""A server and a stranger for the commands to call."""

from contextlib import ExitStack

import pytest

from tests.support.listening import Handler, listening


@pytest.fixture(scope="module")
def api(shared_double, shared_serve):
    """One server for the tests that leave its settings alone."""
    return shared_serve(shared_double, parallel=2)


@pytest.fixture
def answering():
    """A factory: ``answering(body)`` is the URL of something that answers every request by 200 and ``body``."""
    with ExitStack() as stack:
        yield lambda body: f"http://127.0.0.1:{stack.enter_context(listening(stranger(body))).server_port}"


def stranger(body):
    """A handler that answers by ``body`` whatever comes."""
    class Stranger(Handler):
        def do_GET(self):
            self.read_body()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

    return Stranger
