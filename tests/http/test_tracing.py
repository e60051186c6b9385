"""A caller's trace: in the log, and passed on to Ollama; without the export of spans."""

import json
import re

import pytest

from tests.support.gunicorn_server import JSON, new_prompt, until

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
HEADERS = {"traceparent": f"00-{TRACE}-{SPAN}-01", "tracestate": "vendor=value,other=1"}


EMBEDDER = "embedder:1b"


@pytest.fixture(scope="module")
def server(shared_double, shared_serve):
    return shared_serve(shared_double, models=EMBEDDER)


@pytest.fixture
def double(double):
    double.set_model(EMBEDDER, capabilities=["embedding"])
    return double


@pytest.mark.parametrize(("path", "body", "upstream"), [
    ("/generate", {"prompt": "?"}, "/api/generate"), ("/generate", {"prompt": "?", "stream": True}, "/api/generate"),
    ("/generate", {"prompt": "?", "stop": "x"}, "/api/generate"),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "?"}]}, "/api/chat"),
    ("/api/embed", {"model": EMBEDDER, "input": ["a", "b"]}, "/api/embed")],
    ids=["plain", "streamed", "with stops", "chat", "embedding"])
def test_a_trace_goes_on_to_ollama(api, double, path, body, upstream):
    """In the same trace, in a span of its own; the state of those who trace is kept."""
    body = json.dumps({"model": "llama3:8b", **body})
    reply = api.request("POST", path, body, {**JSON, **HEADERS, "Cache-Control": "no-store"})
    assert reply.status == 200 and api.record_of(reply)["trace_id"] == TRACE
    headers = double.calls(upstream)[-1].headers
    span = re.fullmatch(f"00-{TRACE}-([0-9a-f]{{16}})-01", headers["traceparent"])[1]
    assert span != SPAN and headers["tracestate"] == HEADERS["tracestate"]


@pytest.mark.parametrize("headers", [
    {}, {"traceparent": f"00-{'0' * 32}-{SPAN}-01"}, {"tracestate": "vendor=value"},
    {"traceparent": f"{HEADERS['traceparent']}, {HEADERS['traceparent']}", "tracestate": "vendor=value"}],
    ids=["none", "zeros", "a state alone", "two"])
def test_without_a_trace_none_is_made_up(api, double, headers):
    """Nor is a malformed one passed on, or logged."""
    reply = api.ask(new_prompt(), headers)
    assert reply.status == 200 and "trace_id" not in api.record_of(reply)
    assert not {"traceparent", "tracestate"} & double.calls("/api/generate")[-1].headers.keys()


def test_a_generation_that_several_joined_is_in_the_trace_of_the_first(api, double):
    """The others have their own in the log."""
    prompt, others = new_prompt("[[ttft=0.5]]"), "ab" * 16
    with api.open_ask(prompt, HEADERS) as first:
        until(lambda: double.calls("/api/generate"))
        joined = api.ask(prompt, {"traceparent": f"00-{others}-{SPAN}-01"})
        assert json.loads(first.read())["response"] == joined.text
    call, = double.calls("/api/generate")
    assert joined.cache.endswith("collapsed") and api.record_of(joined)["trace_id"] == others
    assert call.headers["traceparent"].split("-")[1] == TRACE
