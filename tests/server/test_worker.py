"""gunicorn's worker: it calls the methods that ours has in place of its own."""

import signal

from gunicorn.config import Config

from llama_api.server.worker import settle
from tests.support.double import answer_for
from tests.support.gunicorn_server import new_prompt, until


def test_a_stop_says_at_once_what_it_waits_for(serve, double):
    """In gunicorn's log; the requests that it counts are finished first."""
    api = serve(double)
    prompt = new_prompt("[[ttft=0.5]]")
    with api.open_ask(prompt) as under_way:
        double.wait(running=1)
        api.signal(signal.SIGTERM)
        until(lambda: "stops and waits for 1 requests" in api.stderr)
        assert answer_for(prompt).encode() in under_way.read()
    api.wait()


def test_settings_are_read_without_a_call(monkeypatch):
    """Each has the value that gunicorn gives it, and is then found before gunicorn's own way is asked."""
    cfg = Config()
    cfg.set("timeout", 7)
    given = {name: getattr(cfg, name) for name in cfg.settings}
    settle(cfg)
    monkeypatch.delattr(Config, "__getattr__")
    assert {name: getattr(cfg, name) for name in cfg.settings} == given and cfg.timeout == 7
