"""A client's connection: a write lasts as long as the client reads."""

import contextlib
import socket
import ssl

import gevent
import pytest
from gevent import socket as gevent_socket
from gevent import ssl as gevent_ssl

from llama_api.server.client_socket import Client, connected
from tests.support.certificates import certify

BODY = bytes(range(256)) * 1600
PATIENCE = 0.5


@pytest.fixture(params=["plain", "tls"])
def pair(request, tmp_path):
    """The service's end of a connection, which has little patience, and the client's; small buffers between them."""
    contexts = (None, None)
    if request.param == "tls":
        certificate, key = certify(tmp_path)
        contexts = (gevent_ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), gevent_ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
        contexts[0].load_cert_chain(certificate, key)
        contexts[1].load_verify_locations(certificate)
    with gevent.Timeout(30), gevent_socket.socket() as listener, gevent_socket.socket() as client:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        client.connect(listener.getsockname())
        accepting = gevent.spawn(connected, listener.accept()[0], contexts[0])
        if contexts[1]:
            client = contexts[1].wrap_socket(client, server_hostname="localhost")
        ours = accepting.get()
        ours.send_seconds = PATIENCE
        with contextlib.closing(ours), contextlib.closing(client):
            yield ours, client


def test_a_slow_reader_gets_all(pair):
    """It takes many times as long as a reader may read nothing."""
    ours, client = pair
    sending = gevent.spawn(ours.sendall, BODY)
    got = b""
    while len(got) < len(BODY):
        got += client.recv(8192)
        gevent.sleep(PATIENCE / 10)
    assert got == BODY and sending.get() is None


def test_who_reads_nothing_is_given_up(pair):
    """As one who has gone, which gunicorn takes without a word in its log."""
    ours, client = pair
    with pytest.raises(ConnectionResetError):
        gevent.spawn(ours.sendall, BODY).get()
    assert client.fileno() >= 0


def test_a_write_leaves_reading_unbounded(pair):
    """The wait for the next request is gunicorn's to bound."""
    ours, client = pair
    ours.sendall(b"answer")
    assert client.recv(100) == b"answer" and ours.gettimeout() is None


def test_what_gevent_gives_is_kept():
    """Family, kind and address of the socket that was accepted, which itself is used up."""
    with gevent_socket.socket() as listener, gevent_socket.socket() as client:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        client.connect(listener.getsockname())
        accepted = listener.accept()[0]
        with contextlib.closing(connected(accepted, None)) as ours:
            assert isinstance(ours, Client) and accepted.fileno() == -1
            assert ours.family == socket.AF_INET and ours.getpeername() == client.getsockname()
