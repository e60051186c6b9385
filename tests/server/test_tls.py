"""TLS by gunicorn's own --certfile and --keyfile."""

import contextlib
import socket
import ssl

import pytest

from tests.support.certificates import certify
from tests.support.double import answer_for
from tests.support.gunicorn_server import new_prompt, until


@pytest.fixture(scope="module")
def api(shared_double, shared_serve, tmp_path_factory):
    """A server that speaks TLS, and a client that trusts its certificate."""
    certificate, key = certify(tmp_path_factory.mktemp("tls"))
    server = shared_serve(shared_double, start=False)
    server.arguments = ["--certfile", certificate, "--keyfile", key]
    server.tls = ssl.create_default_context(cafile=certificate)
    return server.start()


def test_every_kind_of_answer_comes_over_tls(api, double):
    """Health, an answer, the same one from the cache, and a stream."""
    assert api.get("/livez").status == 200
    prompt = new_prompt()
    assert [api.ask(prompt).json["cached"] for _ in range(2)] == [False, True]
    streamed = new_prompt()
    assert api.ask(streamed, stream=True).text == answer_for(streamed)


def test_a_large_body_goes_both_ways(api, double):
    """More than the buffers of a connection hold: nothing is lost on the way in, nor on the way out."""
    assert api.ask(new_prompt("x" * 900_000), stream=True).status == 200
    assert len(api.get("/docs/swagger-ui-bundle.js").body) > 1_000_000


def test_a_client_that_leaves_stops_its_generation(api, double):
    """Its farewell is a record of TLS, which must not be taken for a byte of a request."""
    with api.tls.wrap_socket(api.send_raw(b""), server_hostname="localhost") as client:
        client.sendall(b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                       b'Content-Length: 30\r\n\r\n{"prompt": "Why? [[ttft=30]]"}')
        double.wait(running=1)
        client.settimeout(0)
        with contextlib.suppress(ssl.SSLWantReadError):
            client.unwrap()  # says farewell, and does not wait for ours
    double.wait(2, running=0, closed_early=1)


def test_plain_http_on_the_tls_port_is_told_so(api):
    """In plain HTTP, as the client speaks nothing else; other clients are unaffected."""
    with api.send_raw(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n") as client:
        answer = client.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 400 ") and b"https://" in answer
    assert api.get("/livez").status == 200


@pytest.mark.parametrize("sent", [
    b"\x16", b"\x16\x03\x01\x00\x05hello", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"])
def test_what_is_no_handshake_is_dropped(api, sent):
    """The connection ends, with no stack trace anywhere."""
    with api.send_raw(sent) as client:
        client.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionResetError):
            while client.recv(1000):
                pass
    assert api.get("/livez").status == 200


def test_a_handshake_that_does_not_come_is_given_up(api):
    """A connection is not held forever by a client that only opens it."""
    with api.send_raw(b"") as silent, api.send_raw(b"\x16\x03\x01") as halting:
        for client in (silent, halting):
            with contextlib.suppress(ConnectionResetError):
                assert client.recv(100) == b""
    assert until(lambda: api.get("/livez").status == 200)
