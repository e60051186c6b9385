"""The state of a socket without reading from it, for gevent's and for Python's."""

import socket

import pytest
from gevent import socket as gevent_socket

from llama_api.sockets import hung_up, quiet, stop_reading


@pytest.fixture(params=[socket.socketpair, gevent_socket.socketpair], ids=["plain", "gevent"])
def pair(request):
    """Both ends of a connection."""
    ours, theirs = request.param()
    with ours, theirs:
        yield ours, theirs


def test_a_silent_connection_is_quiet_and_up(pair):
    """No data has arrived and the peer is there."""
    assert quiet(pair[0]) is True and not hung_up(pair[0])


@pytest.mark.parametrize("whole", [True, False])
def test_a_close_is_seen_behind_unread_bytes(pair, whole):
    """Of the whole connection or of its other half; a look at the bytes alone is blind to it."""
    ours, theirs = pair
    theirs.send(b"stray")
    assert quiet(ours) is None and not hung_up(ours)
    if whole:
        theirs.close()
    else:
        theirs.shutdown(socket.SHUT_WR)
    assert quiet(ours) is None and hung_up(ours)


def test_our_own_closed_socket_is_hung_up(pair):
    """There is no peer to write to."""
    pair[0].close()
    assert hung_up(pair[0])


def test_reading_is_stopped_and_writing_is_not(pair):
    """The end is found at once, the other side still gets what is sent; a second stop does nothing."""
    ours, theirs = pair
    stop_reading(ours)
    stop_reading(ours)
    assert ours.recv(10) == b""
    ours.send(b"answer")
    assert theirs.recv(10) == b"answer"
