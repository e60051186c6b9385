"""The worker: what has connected before it stops is answered."""

import socket
from contextlib import ExitStack

import gevent
import pytest
from gevent.pool import Pool
from gevent.socket import socket as GeventSocket

from llama_api.server.listener import ListenerName, Server

CLIENTS = 20


@pytest.fixture
def listener():
    """A listening socket on a free loopback port."""
    with GeventSocket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(CLIENTS)
        yield listener


def test_connections_that_wait_in_the_kernel_are_served_at_the_close(listener):
    """They are taken in the same breath, and their handlers may still ask for the listener's name."""
    address, name, pool = listener.getsockname(), ListenerName(listener), Pool()

    def handle(client, _):
        gevent.sleep(0)  # the listener is closed before this goes on
        client.sendall(repr(name.getsockname()).encode())
        client.close()

    server = Server(listener, handle=handle, spawn=pool)
    server.start()
    with ExitStack() as stack:
        clients = [stack.enter_context(socket.create_connection(address, timeout=5)) for _ in range(CLIENTS)]
        server.close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address, timeout=5)
        pool.join(5)
        assert {client.recv(100) for client in clients} == {repr(address).encode()}


def test_a_second_close_does_nothing(listener):
    """gunicorn may close twice."""
    server = Server(listener, handle=print, spawn=Pool())
    server.start()
    server.close()
    server.close()
    assert server.closed
