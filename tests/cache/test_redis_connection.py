"""The private ground of redis-py: these tests fail when it changes under us."""

import inspect
import select
import socket

import pytest
import redis

from llama_api.cache import redis_connection
from llama_api.cache.redis_connection import DeadlineSocket, TcpConnection
from tests.cache import LONG


class Counting(TcpConnection):
    """Notes what redis-py calls of it."""

    calls = []

    def connect(self):
        self.calls.append("connect")
        super().connect()

    def _connect(self):
        self.calls.append("_connect")
        return super()._connect()


@pytest.fixture
def client(shared_redis_server):
    Counting.calls.clear()
    address = ("127.0.0.1", shared_redis_server.port)
    pool = redis.ConnectionPool(connection_class=Counting, addresses=[(socket.AF_INET, address)], protocol=2,
                                driver_info=None)
    yield redis.Redis(connection_pool=pool)
    pool.disconnect()


@pytest.fixture
def pair():
    ends = socket.socketpair()
    yield ends
    for end in ends:
        end.close()


def test_what_is_derived_from_is_still_there():
    """The method that makes the socket, without arguments, and the one that calls it."""
    assert list(inspect.signature(redis.Connection._connect).parameters) == ["self"]
    assert "_connect" in inspect.getsource(redis.Connection.connect) + inspect.getsource(
        redis.Connection.connect_check_health)


def test_each_operation_begins_with_connect_and_makes_one_socket(client):
    """So the time of an operation begins there, connected or not."""
    for _ in range(3):
        client.ping()
    assert Counting.calls.count("_connect") == 1 and Counting.calls.count("connect") >= 3
    before = len(Counting.calls)
    client.ping()
    assert "connect" in Counting.calls[before:]


def test_an_idle_connection_is_polled_and_not_waited_for(client, monkeypatch):
    """Before it uses one again, redis-py asks with a time-out of zero whether anything came: nothing must wait then."""
    timeouts = []
    settimeout = DeadlineSocket.settimeout
    monkeypatch.setattr(DeadlineSocket, "settimeout", lambda self, seconds: (
        timeouts.append(seconds), settimeout(self, seconds))[1])
    monkeypatch.setattr(redis_connection, "BUDGET", LONG)
    for _ in range(5):
        client.ping()
    assert 0 in timeouts


def test_a_wait_ends_with_the_deadline(pair):
    """For any timeout of redis-py except zero, which polls."""
    sock = DeadlineSocket(pair[0], lambda: 0.01)
    sock.settimeout(LONG)
    with pytest.raises(TimeoutError):
        sock.recv(10)
    sock.settimeout(0)
    with pytest.raises(BlockingIOError):
        sock.recv_into(bytearray(10))
    pair[1].sendall(b"there")
    assert sock.recv(10) == b"there"


def test_what_came_while_the_process_was_held_up_counts(pair):
    """A busy event loop may see its timer before the socket: what is there by then is read all the same."""
    class HeldUp:
        """A socket whose timer strikes first, although it has been given something."""

        def __getattr__(self, name):
            return getattr(pair[0], name)

        def recv(self, size):
            if pair[0].gettimeout():
                select.select([pair[0]], [], [], LONG)
                raise TimeoutError
            return pair[0].recv(size)

    pair[1].sendall(b"there")
    assert DeadlineSocket(HeldUp(), lambda: 0.01).recv(10) == b"there"
