"""gunicorn's command line: honoured or refused, never dropped in silence."""

import signal
import subprocess
import sys

import pytest
from gunicorn.config import Config

from llama_api.server.command_line import faults_of
from tests.support.double import answer_for
from tests.support.gunicorn_server import ROOT, free_port, new_prompt, until

OURS = "llama_api.server.worker.Worker"
REFUSED = [
    ("preload_app", True, "--preload"), ("worker_class", "gevent", "--worker-class gevent"),
    ("worker_class", "gthread", "--worker-class gthread"), ("threads", 4, "--threads 4"),
    ("http_protocols", "h2,h1", "HTTP/2"), ("http2_cleartext", "upgrade", "HTTP/2"),
    ("control_socket", "x.sock", "--control-socket"),
    ("raw_env", ["LLAMA_API_MODEL=x"], "LLAMA_API_MODEL"), ("raw_env", ["WEB_CONCURRENCY=2"], "WEB_CONCURRENCY"),
    ("raw_env", ["OTEL_EXPORTER_OTLP_ENDPOINT=http://h"], "OTEL_EXPORTER_OTLP_ENDPOINT")]
HONOURED = [("worker_class", OURS), ("timeout", 10), ("raw_env", ["OTHER=x"]), ("max_requests", 100),
            ("accesslog", "-"), ("certfile", "x.pem"), ("reload", True), ("bind", ["127.0.0.1:1", "unix:x"])]


def configured(**options):
    """gunicorn's configuration with ``options``."""
    cfg = Config()
    for name, value in {"worker_class": OURS, **options}.items():
        cfg.set(name, value)
    return cfg


@pytest.mark.parametrize("name, value, told", REFUSED)
def test_what_cannot_be_honoured_is_a_fault(name, value, told):
    """It is named in a sentence that says what to do instead."""
    fault, = faults_of(configured(**{name: value}))
    assert told in fault


@pytest.mark.parametrize("name, value", HONOURED)
def test_what_can_be_honoured_is_none(name, value):
    """Options that the service has no opinion of are gunicorn's own business."""
    assert list(faults_of(configured(**{name: value}))) == []


def test_faults_are_told_together_and_nothing_is_served(serve, double):
    """On stderr, with an exit status that is not 0, and no stack trace."""
    server = serve(double, start=False)
    server.arguments = ["--preload", "--threads", "4"]
    server.spawn()
    process, server.process = server.process, None
    assert process.wait(20) not in (0, None)
    assert "--preload" in server.stderr and "--threads" in server.stderr and "Listening" not in server.stderr


def test_bind_and_workers_of_the_command_line_win(serve, double):
    """Workers are warned of as if the settings had named them; a stop waits for what came by any of the addresses."""
    ports = free_port(), free_port()
    api = serve(double, start=False, bind="127.0.0.1:1")
    api.arguments = ["--workers", "2", *(word for port in ports for word in ("--bind", f"127.0.0.1:{port}"))]
    api.port = ports[1]
    api.start()
    until(lambda: len(api.workers) == 2)
    until(lambda: any("WEB_CONCURRENCY=2" in record["message"] for record in api.records))
    prompt = new_prompt("[[ttft=0.5]]")
    with api.open_ask(prompt) as under_way:
        double.wait(running=1)
        api.signal(signal.SIGTERM)
        assert under_way.head.status == 200 and answer_for(prompt).encode() in under_way.read()
    api.wait()


def test_the_master_does_not_load_the_application():
    """Its configuration has nothing of Flask or of the doors: a reload would keep the old code of what it loads."""
    script = ("import sys; import llama_api.server.gunicorn_conf, llama_api.server.worker; print(*(name for name in"
              " sys.modules if name.partition('.')[0] in ('flask', 'werkzeug', 'requests', 'marshmallow')"
              " or name.startswith(('llama_api.api', 'llama_api.http', 'llama_api.core'))))")
    loaded = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert loaded.stdout.split() == []
