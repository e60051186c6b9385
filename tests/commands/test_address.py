"""The address at which the commands look for the service, by its settings and gunicorn's own options."""

import socket

import pytest

from llama_api.commands.address import Address
from llama_api.settings import Settings


@pytest.mark.parametrize("bind, options, url", [
    ("0.0.0.0:8000", "", "http://127.0.0.1:8000"), ("[::]:8000", "", "http://[::1]:8000"),
    ("example:80", "--workers 3 --certfile", "http://example:80"), ("example:80", "'", "http://example:80"),
    ("127.0.0.1:1", "--bind 0.0.0.0:8443 --certfile 'a b.pem' --keyfile k.pem", "https://127.0.0.1:8443"),
    ("127.0.0.1:1", "-b :8443 -b [::1]:8443", "http://[::1]:8443"), ("127.0.0.1:1", "-b fd://3", "http://127.0.0.1:1"),
    ("127.0.0.1:1", "--bind=unix:/run/l.sock", "http://localhost")])
def test_gunicorns_options_win_over_the_setting(monkeypatch, bind, options, url):
    """As in gunicorn; invalid ones are left to gunicorn."""
    monkeypatch.setenv("GUNICORN_CMD_ARGS", options)
    address = Address.of(Settings(bind=bind))
    assert address.url == url and (address.path == "/run/l.sock") == ("unix:" in options)


@pytest.mark.parametrize("bind, words", [
    ("192.0.2.1:8000", ["Cannot assign", "LLAMA_API_BIND to an address of this machine"]),
    ("no.such.host.invalid:8000", ["LLAMA_API_BIND to an address of this machine"])])
def test_an_address_of_elsewhere_cannot_be_listened_on(bind, words):
    """The cure is one of this machine."""
    fault = Address(bind).fault()
    assert fault.startswith(f"{bind} cannot be listened on (") and all(word in fault for word in words)


def test_a_port_is_free_or_taken():
    """While another listens there it is not; a socket file is gunicorn's to judge."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        bind = "127.0.0.1:%d" % taken.getsockname()[1]
        assert "Address already in use" in Address(bind).fault() and "`ss -ltnp`" in Address(bind).fault()
    assert Address(bind).fault() is None and Address("unix:some.sock").fault() is None
    assert Address("[::1]:0").fault() is None
