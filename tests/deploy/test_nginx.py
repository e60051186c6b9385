"""deploy/ with a real nginx before two services: no request is lost, streams flow, no address can be spoofed."""

import json
import signal
import subprocess

import pytest

from tests.support.gunicorn_server import JSON, new_prompt, until
from tests.support.nginx_server import Load, Nginx
from tests.support.programs import needed


@pytest.fixture(scope="module")
def services(shared_double, shared_serve):
    """Two services on one Ollama."""
    return [shared_serve(shared_double, parallel=8, queue=100, trusted_proxies=1) for _ in range(2)]


@pytest.fixture
def double(double):
    """Their Ollama as it was at first, for this test."""
    double.set(slots=32, ttft=0.02)
    return double


@pytest.fixture
def pair(double, services):
    """The two services."""
    return services


@pytest.fixture
def nginx(pair, tmp_path):
    """nginx before the two."""
    needed("nginx")
    with Nginx(tmp_path / "nginx", pair) as nginx:
        yield nginx


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
    """The caller's own claims are ignored."""
    reply = nginx.ask(new_prompt(), headers={"X-Forwarded-For": "192.0.2.7", "X-Forwarded-Host": "evil.example"})
    request_id = reply.headers["X-Request-ID"]
    record, = until(lambda: [record for server in pair for record in server.records
                             if record.get("request_id") == request_id])
    assert record["client"] == "127.0.0.1"


def test_the_service_itself_refuses_what_is_too_large(nginx):
    """A body over MAX_BODY_BYTES gets the problem of the contract, not a page of nginx's."""
    reply = nginx.ask_raw(b'{"prompt": "' + b"a" * 1_100_000 + b'"}', JSON)
    assert (reply.status, reply.slug) == (413, "body-too-large")


def test_a_browser_stays_with_one_server_for_what_it_watches(nginx, pair):
    """The page's data is one server's own; what the page asks is balanced."""
    for _ in range(6):
        nginx.get("/stats", headers={"X-Request-ID": "watching"})

    def shares():
        return sorted(sum(record.get("request_id") == "watching" for record in server.records) for server in pair)

    until(lambda: sum(shares()) == 6)
    assert shares() == [0, 6]


@pytest.fixture
def curl(pair, tmp_path):
    """curl over HTTP/2 to nginx with TLS before the two: a call gives its body, and starts with what ``write`` asks."""
    needed("nginx")
    program = needed("curl")
    with Nginx(tmp_path / "nginx", pair, front="tls.conf") as nginx:
        def curl(path, *options, write=""):
            return subprocess.run(
                [program, "-sSN", "--http2", "--cacert", nginx.certificate, "-w", write, "--noproxy", "*", *options,
                 "--connect-to", f"localhost:443:127.0.0.1:{nginx.tls_port}",
                 "--connect-to", f"localhost:80:127.0.0.1:{nginx.port}", path],
                check=True, capture_output=True, text=True).stdout

        yield curl


def test_tls_and_http_2(curl, pair):
    """The certificate holds, HTTP/2 is spoken, a plain request is sent there, and a stream comes whole."""
    assert curl("http://localhost/docs", "-o", "/dev/null", write="%{http_code} %{redirect_url}") == (
        "308 https://localhost/docs")
    body = json.dumps({"prompt": new_prompt("[[tokens=12]]"), "stream": True})
    text = curl("http://localhost/generate", "-L", "-H", "Content-Type: application/json", "-d", body,
                write="%{http_version} %{http_code}")
    events, end = text.rsplit("\n\n", 1)
    assert end == "2 200" and json.loads(events.rsplit("data: ", 1)[1])["done"]
    assert curl("https://localhost/readyz", "-o", "/dev/null", write="%header{x-request-id}")
