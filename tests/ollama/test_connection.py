"""The private ground of urllib3 and http.client: these tests fail when either stops using what is ours."""

import http.client
import threading

import pytest
import requests
import urllib3

from llama_api.ollama import connection
from llama_api.ollama.connection import Call, CuttingAdapter
from llama_api.waiting import Cancelled
from tests.support.fakes import until
from tests.support.listening import Handler, listening

PIECES = [b"first ", b"second ", b"third"]
ANSWER = (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
          + b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in PIECES) + b"0\r\n\r\n")
LONG = 30.0


class Counting(Handler):
    """Answers each request by all pieces in one write, or not at all."""

    protocol_version = "HTTP/1.1"

    def setup(self):
        super().setup()
        self.server.connections += 1

    def do_POST(self):
        self.read_body()
        self.server.requests += 1
        if self.path != "/silent":
            self.wfile.write(ANSWER)
        elif not self.rfile.read(1):
            self.server.left += 1
            self.close_connection = True


@pytest.fixture
def server():
    """A server that counts its connections, requests and those that left before their answer."""
    with listening(Counting) as server:
        server.connections = server.requests = server.left = 0
        yield server


@pytest.fixture
def post(server):
    """Post to a path of ``server``, as the client of Ollama does; returns the response, of which nothing is read."""
    with requests.Session() as session:
        session.mount("http://", CuttingAdapter(max_retries=0))

        def post(path="/"):
            url = f"http://127.0.0.1:{server.server_port}{path}"
            request = session.prepare_request(requests.Request("POST", url, data=b"question"))
            return session.get_adapter(url).send(request, stream=True, timeout=LONG)

        yield post


def whole(response):
    """The body, read to its end; its connection goes back to the pool."""
    body = b"".join(iter(lambda: response.raw.read1(65536), b""))
    response.close()
    return body


def test_chunks_that_arrived_together_are_read_together(post):
    """http.client does not do that, so the response is of our class."""
    assert post().raw.read1(65536) == b"".join(PIECES)


def test_a_request_is_sent_as_one(post, monkeypatch):
    """Head and body, by one call of http.client's ``send``."""
    sent, send = [], http.client.HTTPConnection.send

    def noted(self, data):
        sent.append(bytes(data))
        send(self, data)

    monkeypatch.setattr(http.client.HTTPConnection, "send", noted)
    assert whole(post()) == b"".join(PIECES)
    one, = sent
    assert one.startswith(b"POST / HTTP/1.1\r\n") and one.endswith(b"\r\n\r\nquestion")


@pytest.mark.parametrize("quiet, connections", [(True, 1), (None, 2), (False, 2)])
def test_our_look_decides_whether_a_connection_is_used_again(server, post, monkeypatch, quiet, connections):
    """Before each use: a connection that was closed, or has unexpected data, is dropped."""
    whole(post())
    monkeypatch.setattr(connection, "quiet", lambda sock: quiet)
    assert whole(post()) == b"".join(PIECES)
    assert (server.connections, server.requests) == (connections, 2)


def test_the_socket_is_handed_over_before_the_wait_for_the_answer(server, post):
    """A call is cut while nothing has come yet, and the other side sees it leave."""
    call, errors = Call(), []

    def ask():
        connection.current.call = call
        try:
            post("/silent")
        except requests.RequestException as error:
            errors.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    until(lambda: server.requests == 1)
    call.cut(Cancelled)
    thread.join(LONG)
    assert len(errors) == 1
    until(lambda: server.left == 1)


def test_the_pool_is_looked_for_once(post, monkeypatch):
    """requests would look for it at each call, by a key of all TLS parameters."""
    looks, look = [], urllib3.PoolManager.connection_from_host

    def noted(self, *args, **kwargs):
        looks.append(args)
        return look(self, *args, **kwargs)

    monkeypatch.setattr(urllib3.PoolManager, "connection_from_host", noted)
    assert [whole(post()) for _ in range(3)] == [b"".join(PIECES)] * 3 and len(looks) == 1


def test_a_response_is_made_of_its_status_and_its_body(post):
    """The headers and cookies that requests would parse are omitted, as they are not used."""
    response = post()
    assert response.status_code == 200 and not response.headers and whole(response) == b"".join(PIECES)
