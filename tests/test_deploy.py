"""What deploy/ promises, with a real nginx before two services: no request is lost, streams flow, nobody is spoofed."""

import itertools
import signal
import threading

import pytest

from tests.double import answer_for
from tests.gunicorn_server import JSON, new_prompt, until
from tests.nginx_server import PROGRAM, Nginx

CLIENTS = 12
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="nginx is not installed")


@pytest.fixture
def pair(double, serve):
    """Two services on one Ollama."""
    double.set(slots=32, ttft=0.02)
    return [serve(double, parallel=8, queue=100, trusted_proxies=1) for _ in range(2)]


@pytest.fixture
def nginx(pair, tmp_path):
    """nginx before the two."""
    with Nginx(tmp_path / "nginx", pair) as nginx:
        yield nginx


class Load:
    """Clients that ask all the time, plain and streamed, new and old questions; ``failures`` is what went wrong."""

    def __init__(self, server):
        self._server, self._end, self._numbers = server, threading.Event(), itertools.count()
        self._threads = [threading.Thread(target=self._run) for _ in range(CLIENTS)]
        self.answers, self.failures = 0, []

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *details):
        self._end.set()
        for thread in self._threads:
            thread.join()

    def _run(self):
        while not self._end.is_set():
            number = next(self._numbers)
            prompt = f"Load {number}?" if number % 2 else f"Load {number % 20}?"
            try:
                reply = self._server.ask(prompt, stream=number % 3 == 0)
                if reply.status != 200 or reply.text != answer_for(prompt, n=100):
                    self.failures.append((reply.status, reply.body[:200]))
                self.answers += 1
            except Exception as error:
                self.failures.append(repr(error))

    def goes_on(self, count=100):
        """Wait until ``count`` more answers have come."""
        wanted = self.answers + count
        until(lambda: self.answers >= wanted or self.failures, what=f"answer {wanted}")


def test_a_rolling_restart_under_load_loses_no_request(nginx, pair):
    """One server after the other is stopped and started, then reloaded, and every caller has its answer."""
    with Load(nginx) as load:
        for server in pair:
            load.goes_on()
            server.stop()
            load.goes_on()
            server.start()
            until(lambda server=server: server.get("/readyz").status == 200)
        for server in pair:
            old = server.workers
            server.signal(signal.SIGHUP)
            until(lambda server=server, old=old: server.workers and not set(old) & set(server.workers))
            load.goes_on()
    assert not load.failures, (len(load.failures), load.answers, load.failures[:5])


def test_a_stream_flows_through_piece_by_piece(nginx, double):
    """nginx hands on each piece as it comes."""
    with nginx.open_ask(new_prompt("[[gap=0.2]] [[tokens=12]]"), stream=True) as exchange:
        assert exchange.head.headers["Content-Type"].startswith("text/event-stream")
        name, piece = exchange.event()
        assert name == "message" and piece["response"] and double.running == 1


def test_a_caller_that_leaves_nginx_ends_its_generation(nginx, double):
    """nginx passes the disconnect on, and the slot is free."""
    with nginx.open_ask(new_prompt("[[ttft=30]]")):
        double.wait(running=1)
    double.wait(running=0)
    assert double.closed_early == 1


def test_the_client_is_the_one_that_nginx_saw(nginx, pair):
    """Whatever a caller claims about itself."""
    reply = nginx.ask(new_prompt(), headers={"X-Forwarded-For": "192.0.2.7", "X-Forwarded-Host": "evil.example"})
    request_id = reply.headers["X-Request-ID"]
    record, = until(lambda: [record for server in pair for record in server.records
                             if record.get("request_id") == request_id])
    assert record["client"] == "127.0.0.1"


def test_the_service_itself_refuses_what_is_too_large(nginx):
    """A body over MAX_BODY_BYTES gets the problem of the contract, not a page of nginx's."""
    reply = nginx.ask_raw(b'{"prompt": "' + b"a" * 1_100_000 + b'"}', JSON)
    assert (reply.status, reply.slug) == (413, "body-too-large")
