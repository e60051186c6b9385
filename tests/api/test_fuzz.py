"""Any input at any door gets an answer of the contract or a closed connection, never a 500, a hang or growth."""

import json
import math
import re
import socket

import psutil
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.config import SchemathesisConfig
from schemathesis.specs.openapi.checks import positive_data_acceptance

from llama_api.api.responder import directives_of
from llama_api.core.service import Directives
from llama_api.settings import PREFIX, Settings, SettingsError
from tests.support.gunicorn_server import JSON

# Hypothesis warns when the random module is used meanwhile: by schemathesis, and by the double in its thread.
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module")
TAKING = ("/generate", "/v1/chat/completions", "/v1/completions")  # what bodies of many shapes are sent to
# A wrong body that is also too large is refused for its size.
REFUSALS = SchemathesisConfig.from_dict({"checks": {"negative_data_rejection": {
    "expected-statuses": ["400", "404", "413", "415", "422"]}}})
SEND_LIMIT = 8.0  # seconds for an answer or the end of a connection: the head's limit is 2
GROWTH_MB = 32
FUZZ = settings(max_examples=150, derandomize=True, database=None,
                suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def server(shared_double, shared_serve):
    """One service for all of them; it must not have grown at the end, nor have failed."""
    shared_double.reset()
    server = shared_serve(shared_double, parallel=8, max_body_bytes=20_000, max_tokens_limit=300)
    server.ask("Warm up")
    worker = psutil.Process(server.workers[0])
    before = worker.memory_info().rss
    yield server
    assert server.workers == [worker.pid], "the worker was replaced"
    assert (worker.memory_info().rss - before) / 1e6 < GROWTH_MB
    statuses = {record["status"] for record in server.records if "status" in record}
    assert 500 not in statuses and 200 in statuses
    assert server.get("/livez").status == 200


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
def test_what_the_document_says_holds(server, mode):
    """Requests made from /openapi.json, right ones and wrong ones, get what it says: status, headers, body."""
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json", config=REFUSALS)
    operations = [result.ok() for result in schema.get_all_operations()]
    assert {(operation.method.upper(), operation.path) for operation in operations} >= {
        ("POST", "/generate"), ("GET", "/health"), ("DELETE", "/cache")}
    if mode is GenerationMode.NEGATIVE:  # the others take nothing that could be wrong
        operations = [operation for operation in operations if operation.path in TAKING]
    for operation in operations:
        @settings(FUZZ, max_examples=30 if operation.path in TAKING else 4)
        @given(case=operation.as_strategy(generation_mode=mode))
        def probe(case):
            # Whether a model is served and a window wide enough is not in a schema.
            foreign = case.path.startswith(("/api/", "/v1/"))
            case.call_and_validate(timeout=SEND_LIMIT, excluded_checks=[positive_data_acceptance] * foreign)

        probe()


TOKENS = st.text("abcXYZ019-_.!~", min_size=1, max_size=12).map(str.encode)
TARGETS = st.binary(max_size=40) | st.sampled_from([
    b"/generate", b"/livez", b"/cache", b"/", b"*", b"/docs/../..", b"//livez", b"/%00", b"http://other.example/livez",
    b"/livez?a=%ff#b"])
HEADERS = st.lists(st.one_of(
    st.tuples(TOKENS, st.binary(max_size=30)).map(lambda pair: b": ".join(pair)),
    st.sampled_from([b"Content-Type: application/json", b"Content-Type: application/json; charset=utf-16",
                     b"Content-Length: 5", b"Content-Length: 99999999999999999999", b"Content-Length: +5",
                     b"Transfer-Encoding: chunked", b"Transfer-Encoding: gzip, chunked", b"Connection: close",
                     b"Expect: 100-continue", b"Upgrade: h2c", b"X-Request-ID: \xff\n", b"Host: [", b" folded",
                     b"X-Forwarded-For: nobody", b"If-None-Match: \"", b"Range: bytes=0-", b"Authorization: \x80"]),
    st.binary(max_size=30)), max_size=6)
BODIES = st.one_of(st.binary(max_size=60), st.sampled_from([
    b'{"prompt": "Hi"}', b'10\r\n{"prompt": "Hi"}\r\n0\r\n\r\n', b"ffffffffffffffff\r\n", b"-1\r\n",
    b"5;a=b\r\nabc"]))


@st.composite
def requests_of_sorts(draw):
    """Bytes that are nearly a request, or nothing like one."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(min_size=1, max_size=200))
    method = draw(TOKENS | st.sampled_from([b"GET", b"POST", b"DELETE", b"HEAD", b"OPTIONS", b"TRACE", b"PRI"]))
    version = draw(st.sampled_from([b"HTTP/1.1", b"HTTP/1.1", b"HTTP/1.1", b"HTTP/1.0", b"HTTP/2.0", b"http/1.1", b""]))
    lines = [b" ".join([method, draw(TARGETS), version]), b"Host: localhost", *draw(HEADERS)]
    return b"\r\n".join(lines) + b"\r\n\r\n" + draw(BODIES)


@FUZZ
@given(data=requests_of_sorts())
def test_bytes_at_the_socket_get_an_answer_or_the_end(server, data):
    """Any bytes get an HTTP answer other than a 500, and then the connection ends."""
    with server.send_raw(data, SEND_LIMIT) as client:
        received = bytearray()
        try:
            client.shutdown(socket.SHUT_WR)
            while more := client.recv(65536):
                received += more
        except ConnectionError:
            pass  # reset: it had enough
    assert not received or re.match(rb"HTTP/1\.[01] [1-4]\d\d |HTTP/1\.[01] 50[1345] ", received), bytes(received)
    assert not re.search(rb"(^|\n)HTTP/1\.[01] 500 ", received) and b"Traceback" not in received


LEAVES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=20),
                   st.sampled_from(["Hi", 1, 0.5, 100, [], ["x"]]))
VALUES = st.recursive(LEAVES, max_leaves=8, extend=lambda inner: (
    st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)))
FIELDS = st.sampled_from("prompt max_tokens temperature system stop seed top_p top_k stream other".split())


@FUZZ
@given(body=st.one_of(st.dictionaries(FIELDS, VALUES, max_size=5), VALUES).map(json.dumps).map(str.encode)
       | st.binary(max_size=100)
       | st.integers(1, 3000).map(lambda depth: b'{"prompt": ' + b"[" * depth + b"]" * depth + b"}"))
def test_any_body_is_answered_or_refused(server, body):
    """JSON of any shape, and what is no JSON, is an answer or a problem that says what is wrong."""
    reply = server.ask_raw(body, JSON, timeout=SEND_LIMIT)
    if reply.status != 200:
        assert (reply.status, reply.slug) in {(400, "malformed-json"), (422, "invalid-request")}


NAMES = st.sampled_from("model messages prompt tools stream response_format max_tokens stop logprobs other".split())
MESSAGES = st.lists(st.dictionaries(st.sampled_from("role content tool_calls tool_call_id other".split()), VALUES))


@FUZZ
@given(path=st.sampled_from(TAKING[1:]), messages=MESSAGES,
       body=st.dictionaries(NAMES, VALUES, max_size=4) | VALUES)
def test_any_body_is_answered_or_refused_in_openais_words(server, path, messages, body):
    """The same at /v1: an answer, or an error object of a status that says whose fault it is."""
    if isinstance(body, dict):
        body = {"model": "llama3:8b", "messages" if "chat" in path else "prompt": messages, **body}
    reply = server.request("POST", path, json.dumps(body), JSON, timeout=SEND_LIMIT)
    if reply.status != 200:
        assert reply.status in (400, 404, 413) and reply.json["error"]["type"] == "invalid_request_error"
        assert reply.json["error"]["code"] not in (None, "unknown_url")


DIRECTIVES = st.lists(st.sampled_from([
    "no-cache", "no-store", "only-if-cached", "max-age=0", "max-age=30", "no-transform", "max-age=", "max-age=x",
    "max-stale=5", "", 'private="a, no-store"']))


@settings(max_examples=300, derandomize=True, database=None)
@given(header=st.text(st.characters(max_codepoint=255), max_size=80))
def test_any_cache_control_is_read(header):
    """No header makes the parser fail, and an age is a number that can be compared."""
    directives = directives_of(header)
    assert isinstance(directives, Directives)
    assert directives.max_age is None or math.isfinite(directives.max_age)


@settings(max_examples=200, derandomize=True, database=None)
@given(parts=DIRECTIVES, upper=st.booleans(), blanks=st.sampled_from(["", " ", "  \t"]))
def test_cache_control_says_what_it_says(parts, upper, blanks):
    """Known directives count wherever they stand, in any case and with any blanks; the others do not."""
    directives = directives_of((blanks + "," + blanks).join(part.upper() if upper else part for part in parts))
    assert directives.no_cache == ("no-cache" in parts)
    assert directives.no_store == ("no-store" in parts)
    assert directives.only_if_cached == ("only-if-cached" in parts)
    ages = {int(part[8:]) for part in parts if re.fullmatch(r"max-age=\d+", part)}
    assert directives.max_age in ages if len(ages) == 1 and not {"max-age=", "max-age=x"} & set(parts) else True


VARIABLES = st.sampled_from([*(PREFIX + name for name in (
    "BIND OLLAMA_URL MODEL PARALLEL QUEUE QUEUE_TIMEOUT TIMEOUT KEEP_ALIVE NUM_CTX CACHE_URL CACHE_TTL API_KEYS"
    " API_KEYS_FILE RATE_LIMIT TRUSTED_HOSTS CORS_ORIGINS LOG_LEVEL LOG_PROMPTS NO_SUCH").split()), "WEB_CONCURRENCY",
    "OTEL_EXPORTER_OTLP_ENDPOINT"])
TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=30) | st.sampled_from(
    ["1", "0", "-1", "1e9", "inf", "nan", "٣", "http://[", "http://u:p@h:99999", "redis://h/x", "sqlite:///", "[::1]:0",
     "/", "1/day", "a,b", ",", "10m", "*", "llama3:8b", "x-cloud"])


@settings(max_examples=200, derandomize=True, database=None)
@given(environ=st.dictionaries(VARIABLES, TEXTS, max_size=6))
def test_any_environment_is_taken_or_every_fault_is_named(environ):
    """Settings are made, or a SettingsError names at least one of the variables; nothing else is raised."""
    try:
        made = Settings.from_env(environ)
    except SettingsError as error:
        assert error.faults and all(fault.split("=")[0] in environ for fault in error.faults)
    else:
        assert made.timeout > 0 and math.isfinite(made.timeout) and made.workers >= 1
        assert all(isinstance(warning, str) for warning in made.warnings())
