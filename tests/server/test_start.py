"""The start from outside: what a wrong setting does, what an odd one does, what the process says."""

import socket
import time

import pytest

from tests.support.double import answer_for
from tests.support.gunicorn_server import new_prompt, until

WRONG = {
    "bind": "8000", "ollama_url": "ftp://x", "model": "gpt:cloud", "parallel": "0", "queue": "-1", "queue_timeout": "0",
    "connect_timeout": "soon", "timeout": "-3", "keep_alive": "10 minutes", "num_ctx": "0", "cache_url": "mongodb://x",
    "cache_max_entries": "-1", "cache_max_bytes": "0", "cache_ttl": "-1", "cache_stale_if_error": "x",
    "max_body_bytes": "1.5", "max_tokens_limit": "0", "rate_limit": "5/fortnight", "trusted_proxies": "-1",
    "trusted_hosts": "a b", "cors_origins": "app.example", "log_level": "LOUD", "log_prompts": "maybe"}


def outcome(server):
    """The exit status and all that was printed by a server that must not start."""
    server.spawn()
    process, server.process = server.process, None
    try:
        return process.wait(20), server.stdout + server.stderr
    finally:
        process.kill()


def test_wrong_settings_are_all_told_and_nothing_is_served(serve):
    """Each with its variable, its value and what is allowed; a secret is masked; the status is not 0."""
    server = serve(start=False, **WRONG, api_keys="a b\u0001sesame", workers="0")
    status, printed = outcome(server)
    assert status not in (0, None) and "Traceback" not in printed
    lines = printed.splitlines()
    for name, value in WRONG.items():
        told = [line for line in lines if f"LLAMA_API_{name.upper()}=" in line]
        assert len(told) == 1 and repr(value) in told[0] and "must be" in told[0]
    assert any("WEB_CONCURRENCY=" in line for line in lines) and any("LLAMA_API_API_KEYS=" in line for line in lines)
    assert "sesame" not in printed and "Listening" not in printed


@pytest.mark.parametrize("settings", [
    {"ollama_url": "http://user:sesame@host:99999"}, {"cache_url": "redis://:sesame@host:port/0"}], ids=str)
def test_a_password_in_a_url_is_never_printed(serve, settings):
    """The fault is reported without it."""
    status, printed = outcome(serve(start=False, **settings))
    assert status not in (0, None) and "must be" in printed and "sesame" not in printed


def test_empty_values_are_defaults(double, serve):
    """As a file of settings with blanks has them; LOG_FILE alone means something by it."""
    api = serve(double, model="", parallel="", timeout="", cache_url="", api_keys="", rate_limit="", cors_origins="",
                log_level="", log_prompts="", trusted_proxies="", num_ctx="", keep_alive="")
    prompt = new_prompt()
    assert api.ask(prompt).text == answer_for(prompt) and api.health()["model"] == "llama3:8b"


def test_odd_settings_are_warned_of(double, serve):
    """Open to all without a key, workers that share no cache, a variable that there is not."""
    server = serve(double, start=False, workers=2, temprature="0.7")
    server.settings["bind"] = f"0.0.0.0:{server.port}"
    api = server.start()

    def warnings():
        return {word for word in ("LLAMA_API_BIND", "WEB_CONCURRENCY", "LLAMA_API_TEMPRATURE") for record in api.records
                if record["level"] == "WARNING" and word in record["message"]}
    assert until(lambda: len(warnings()) == 3)


def test_a_base_url_may_have_a_path(own_double, serve):
    """The prefix stands before Ollama's own paths; here there is nothing, which is no reason to fall."""
    api = serve(ollama_url=f"{own_double.url}/ollama/")
    assert api.ask(new_prompt()).slug == "ollama-error"
    called = {call.path for call in own_double.calls()}
    assert called <= {"/ollama/api/generate", "/ollama/api/tags", "/ollama/api/version"}
    assert own_double.calls("/ollama/api/generate")


def test_a_connection_that_is_not_taken_ends_in_time(serve):
    """CONNECT_TIMEOUT bounds the wait for an address that does not answer, and that is 503."""
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        port = deaf.getsockname()[1]
        fillers = [filler(port) for _ in range(4)]
        try:
            api = serve(ollama_url=f"http://127.0.0.1:{port}", connect_timeout=0.3, timeout=20)
            started = time.monotonic()
            reply = api.ask(new_prompt())
            assert (reply.status, reply.slug) == (503, "ollama-unavailable")
            assert time.monotonic() - started < 10
        finally:
            for client in fillers:
                client.close()


def filler(port):
    """A connection that takes up a place of the backlog."""
    client = socket.socket()
    client.setblocking(False)
    client.connect_ex(("127.0.0.1", port))
    return client
