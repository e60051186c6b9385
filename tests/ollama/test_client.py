"""The client of Ollama: what it sends, what it makes of every answer, and that no wait of it is without an end."""

import json
import socket
import threading
import time
from contextlib import contextmanager, suppress

import orjson
import pytest
import requests
import responses
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_api.ollama import client as ollama
from llama_api.ollama import protocol as ollama_protocol
from llama_api.waiting import Cancellation, Cancelled, Watchdog
from llama_api.ollama.client import OllamaClient
from llama_api.ollama.connection import Call
from llama_api.ollama.protocol import (Completion, LineReader, ModelNotFound, OllamaBusy, OllamaError, OllamaTimeout,
                                       OllamaUnavailable, PromptTooLong)
from llama_api.settings import Settings
from tests.support.double import OllamaDouble, answer_for
from tests.support.fakes import in_threads, question, until

BASE = "http://127.0.0.1:11434"
GENERATE, SHOW, TAGS, VERSION = (BASE + path for path in ("/api/generate", "/api/show", "/api/tags", "/api/version"))
DONE = {"model": "llama3:8b", "response": "", "done": True, "done_reason": "stop", "prompt_eval_count": 17,
        "eval_count": 50, "eval_duration": 500_000_000}
STOPS = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
PARAMETERS = "num_keep                       24\n" + "\n".join(f'stop                           "{s}"' for s in STOPS)
LONG = 30.0


def lines(*records):
    """NDJSON as Ollama sends it."""
    return b"".join(orjson.dumps(record) + b"\n" for record in records)


def piece(text):
    return {"model": "llama3:8b", "response": text, "done": False}


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch):
    """Wait a hundredth of the time between tries."""
    monkeypatch.setattr(ollama, "BACKOFF_SECONDS", 0.0015)


@pytest.fixture
def upstream():
    """An Ollama by way of `responses`, for whatever needs no real socket."""
    with responses.RequestsMock() as mock:
        mock.assert_all_requests_are_fired = False
        yield mock


def generate(asked=None, digest="build-1", **env):
    """Ask a fresh client; returns the pieces and the completion."""
    return ask(OllamaClient(Settings(**env), Watchdog()), asked, digest)


def ask(client, asked=None, digest="build-1", cancellation=None):
    pieces = []
    completion = client.generate(asked or question(), digest, cancellation or Cancellation(), pieces.append)
    return pieces, completion


def sent(upstream, url=GENERATE):
    """The bodies of all calls of ``url``."""
    return [json.loads(call.request.body) for call in upstream.calls if call.request.url == url]


# What is sent


def test_the_smallest_payload(upstream):
    """A question of defaults sends what the contract says and nothing else."""
    upstream.post(GENERATE, body=lines(piece("Hi"), DONE))
    generate()
    assert sent(upstream) == [{
        "model": "llama3:8b", "prompt": "Why is the sky blue?", "stream": True, "truncate": False,
        "options": {"num_predict": 100, "temperature": 0.7}}]


def test_the_largest_payload(upstream):
    """Every field has its place: limits and sampling among the options, system beside the prompt."""
    upstream.post(SHOW, json={"parameters": PARAMETERS})
    upstream.post(GENERATE, body=lines(DONE))
    generate(question("Hi", max_tokens=5, temperature=0.0, system="Be kind.", stop=("x", "<|eot_id|>", "y"), seed=0,
                      top_p=0.5, top_k=1), model="other:1b", num_ctx=4096, keep_alive="10m")
    assert sent(upstream) == [{
        "model": "other:1b", "prompt": "Hi", "system": "Be kind.", "stream": True, "truncate": False,
        "keep_alive": "10m", "options": {"num_predict": 5, "temperature": 0.0, "seed": 0, "top_p": 0.5, "top_k": 1,
                                         "num_ctx": 4096, "stop": [*STOPS, "x", "y"]}}]
    assert sent(upstream, SHOW) == [{"model": "other:1b"}]


@pytest.mark.parametrize("keep_alive", [0, -1, 300, 1.5, "10m"])
def test_keep_alive_is_sent_as_it_is_set(upstream, keep_alive):
    """A number stays a number, zero too; a duration is text."""
    upstream.post(GENERATE, body=lines(DONE))
    generate(keep_alive=keep_alive)
    assert sent(upstream)[0]["keep_alive"] == keep_alive


def test_nothing_but_plain_json_is_in_the_headers(upstream, monkeypatch):
    """No Origin, no cookie, no credentials from a netrc file, no compression."""
    upstream.post(GENERATE, body=lines(DONE), headers={"Set-Cookie": "a=b"})
    client = OllamaClient(Settings(), Watchdog())
    ask(client)
    ask(client)
    headers = {name.lower(): value for name, value in upstream.calls[1].request.headers.items()}
    body = upstream.calls[1].request.body
    assert headers == {"content-type": "application/json", "accept-encoding": "identity",
                       "content-length": str(len(body))}


@pytest.mark.parametrize("base", ["http://gpu:1/ollama", "https://gpu"])
def test_the_base_url_may_have_a_path(upstream, base):
    """The endpoints go below whatever path the URL has."""
    upstream.post(base + "/api/generate", body=lines(DONE))
    assert generate(ollama_url=base)[1].finish_reason == "stop"


def test_credentials_in_the_url_are_sent(upstream):
    """User and password of OLLAMA_URL become basic authentication, for a proxy in front of Ollama."""
    upstream.post("http://me:pw@127.0.0.1:11434/api/generate", body=lines(DONE))
    generate(ollama_url="http://me:pw@127.0.0.1:11434")
    assert upstream.calls[0].request.headers["Authorization"] == "Basic bWU6cHc="


def test_the_models_stops_are_asked_for_once_a_build(upstream):
    """/api/show is read before the first list of stops and again for another digest; without stops never."""
    upstream.post(SHOW, json={"parameters": PARAMETERS})
    upstream.post(GENERATE, body=lines(DONE))
    client = OllamaClient(Settings(), Watchdog())
    for stop, digest, shows in (((), "one", 0), (("x",), "one", 1), (("y",), "one", 1), (("x",), "two", 2),
                                (("x",), None, 3), (("x",), None, 4)):
        ask(client, question(stop=stop), digest)
        assert len(sent(upstream, SHOW)) == shows
        assert sent(upstream)[-1]["options"].get("stop") == ([*STOPS, *stop] if stop else None)


@pytest.mark.parametrize("parameters, own", [
    (None, []), ("", []), (5, []), ("num_ctx 4096", []), ("stop", []), ("stop   ", []),
    ('stop "a b"', ["a b"]), ("stop AI:", ["AI:"]), ('stop "\\n"\r\n  stop "x"', ["\n", "x"]),
    ('stop "unclosed', ['"unclosed']), ("stopper x", []), ('stop "a"\nstop "a"', ["a"])])
def test_the_stops_of_a_models_parameters(upstream, parameters, own):
    """Each ``stop`` line counts, quoted or bare; whatever else stands there does not."""
    upstream.post(SHOW, json={} if parameters is None else {"parameters": parameters})
    upstream.post(GENERATE, body=lines(DONE))
    generate(question(stop=("mine",)))
    assert sent(upstream)[0]["options"]["stop"] == [*own, "mine"]


def test_a_failing_show_fails_the_generation(upstream):
    """Without the model's own stops a list is not sent: it would replace them."""
    upstream.post(SHOW, status=404, json={"error": "model 'llama3:8b' not found"})
    with pytest.raises(ModelNotFound):
        generate(question(stop=("x",)))
    assert sent(upstream) == []


# What is made of a good answer


def test_pieces_and_counts(upstream):
    """The pieces go out as they are, the counts and the speed are Ollama's own."""
    upstream.post(GENERATE, body=lines(piece("The"), piece(" ské"), piece("\n漢😀"), DONE))
    assert generate() == (["The", " ské", "\n漢😀"], Completion("stop", 17, 50, 100.0))


@pytest.mark.parametrize("changes, completion", [
    ({"done_reason": "length"}, Completion("length", 17, 50, 100.0)),
    ({"done_reason": "load"}, Completion(None, 17, 50, 100.0)),
    ({"done_reason": None}, Completion(None, 17, 50, 100.0)), ({"done_reason": 7}, Completion(None, 17, 50, 100.0)),
    ({"done_reason": ["stop"]}, Completion(None, 17, 50, 100.0)),
    ({"prompt_eval_count": None, "eval_count": None}, Completion("stop", None, None, None)),
    ({"eval_count": 0}, Completion("stop", 17, 0, None)), ({"eval_duration": 0}, Completion("stop", 17, 50, None)),
    ({"prompt_eval_count": -1, "eval_count": "7"}, Completion("stop", None, None, None)),
    ({"prompt_eval_count": True, "eval_count": 2.5}, Completion("stop", None, None, None)),
    ({"prompt_eval_count": 2 ** 53}, Completion("stop", None, 50, 100.0)),
    ({"new": {"a": [1]}, "error": None}, Completion("stop", 17, 50, 100.0)),
    ({"context": list(range(5000))}, Completion("stop", 17, 50, 100.0))])
def test_counts_and_reasons_that_are_none(upstream, changes, completion):
    """What Ollama did not say, or said nonsense of, is None and no error."""
    upstream.post(GENERATE, body=lines(piece("x"), DONE | changes))
    assert generate() == (["x"], completion)


def test_text_in_the_last_record_counts(upstream):
    """An answer as one object is taken like a stream."""
    upstream.post(GENERATE, json=DONE | {"response": "all of it"})
    assert generate() == (["all of it"], Completion("stop", 17, 50, 100.0))


# What is made of a bad one: docs of Ollama's errors, each to its type, actionable, without the raw text


def error(text):
    return orjson.dumps({"error": text})


ENGINE = json.dumps({"error": {"code": 400, "message": "request (9000 tokens) exceeds", "n_ctx": 8192,
                               "type": "exceed_context_size_error", "n_prompt_tokens": 9000}})
SECRET = "secret-host /usr/lib/ollama/x"
BAD = [
    # status, body, type, words of the sentence
    (400, error("missing request body " + SECRET), OllamaError, "400"),
    (400, error("json: cannot unmarshal array into Go struct field " + SECRET), OllamaError, "log"),
    (400, error("time: missing unit in duration " + SECRET), OllamaError, "400"),
    (400, error("invalid model name " + SECRET), OllamaError, "400"),
    (400, error(ENGINE), PromptTooLong, "9000 tokens, room for 8192"),
    (400, error(ENGINE.replace("9000}", '"secret-host"}')), PromptTooLong, "shorten"),
    (400, error("the prompt is longer than the context length currently available " + SECRET), PromptTooLong,
     "shorten"),
    (400, error('{"error": {"type": "other", "message": "' + SECRET + '"}}'), OllamaError, "400"),
    (400, error('{"error": "' + SECRET + '"}'), OllamaError, "400"), (400, error("[1]" + SECRET), OllamaError, "400"),
    (401, orjson.dumps({"error": "unauthorized", "signin_url": SECRET}), OllamaError, "401"),
    (403, b"", OllamaError, "OLLAMA_URL"),
    (404, error(f"model '{SECRET}' not found"), ModelNotFound, "ollama pull llama3:8b"),
    (404, error(f'model "{SECRET}" not found, try pulling it first'), ModelNotFound, "ollama pull llama3:8b"),
    (404, b"404 page not found " + SECRET.encode(), OllamaError, "OLLAMA_URL"),
    (405, b"405 method not allowed", OllamaError, "OLLAMA_URL"),
    (500, error("llama-server process has terminated: exit status 2: " + SECRET), OllamaError, "log"),
    (500, error("option \"temperature\" must be of type float32 " + SECRET), OllamaError, "500"),
    (500, error("no slots available after 10 retries"), OllamaError, "500"),
    (500, orjson.dumps({"error": {"message": SECRET}}), OllamaError, "OLLAMA_URL"),
    (500, b"[]", OllamaError, "OLLAMA_URL"), (500, b"", OllamaError, "OLLAMA_URL"),
    (502, b"<html>502 Bad Gateway " + SECRET.encode(), OllamaError, "OLLAMA_URL"),
    (503, error("server busy, please try again.  maximum pending requests exceeded"), OllamaBusy, "try again"),
    (204, b"", OllamaError, "204"), (206, lines(DONE), OllamaError, "206"),
    (200, b"", OllamaError, "broke off"), (200, b"<html>" + SECRET.encode(), OllamaError, "OLLAMA_URL"),
    (200, b"\n \n", OllamaError, "broke off"), (200, lines(piece("x")), OllamaError, "broke off"),
    (200, lines(piece("x"), DONE)[:-30], OllamaError, "protocol"), (200, b"null\n", OllamaError, "protocol"),
    (200, b"[]\n", OllamaError, "protocol"), (200, b"42\n", OllamaError, "protocol"),
    (200, b'{"response": "\xff"}\n', OllamaError, "protocol"),
    (200, b'{"response": "\\ud83d"}\n', OllamaError, "protocol"),
    (200, b'{"a":' * 5000 + b"1" + b"}" * 5000 + b"\n", OllamaError, "protocol"),
    (200, lines({"response": 5}), OllamaError, "no text"), (200, lines({"response": None}), OllamaError, "no text"),
    (200, lines(piece("x"), {"error": "unexpected EOF " + SECRET}), OllamaError, "while generating"),
    (200, lines(piece("x"), {"error": {"message": SECRET}}), OllamaError, "while generating"),
    (200, lines(DONE | {"error": SECRET}), OllamaError, "while generating"),
    (200, lines(DONE | {"done": False}), OllamaError, "broke off"),
    (200, lines(DONE | {"done": "yes"}), OllamaError, "broke off"),
    (200, lines(DONE | {"done": 1}), OllamaError, "broke off")]


@pytest.mark.parametrize("status, body, kind, words", BAD)
def test_every_bad_answer_has_its_error(upstream, status, body, kind, words):
    """Each is of its type, its sentence helps, and no text of the upstream's is in it."""
    upstream.post(GENERATE, status=status, body=body)
    with pytest.raises(OllamaError) as caught:
        generate()
    sentence = str(caught.value)
    assert type(caught.value) is kind and words in sentence and sentence.endswith(".") and len(sentence) < 200
    assert "secret" not in sentence and "/usr" not in sentence
    assert len(upstream.calls) == (ollama.TRIES if kind is OllamaBusy else 1)


def test_raw_errors_are_logged(upstream, caplog):
    """The operator finds Ollama's own words in the log, cut to a bearable length."""
    upstream.post(GENERATE, status=500, body=error("cudaMalloc failed " + "x" * 5000))
    ollama.logger.addHandler(caplog.handler)
    try:
        with pytest.raises(OllamaError):
            generate()
    finally:
        ollama.logger.removeHandler(caplog.handler)
    message, = {record.getMessage() for record in caplog.records if "500" in record.getMessage()}
    assert "cudaMalloc failed" in message and len(message) < 600


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_redirects_are_refused(upstream, status):
    """A prompt goes nowhere but to OLLAMA_URL."""
    upstream.post(GENERATE, status=status, headers={"Location": "http://evil.example/api/generate"})
    with pytest.raises(OllamaError, match="OLLAMA_URL"):
        generate()
    assert len(upstream.calls) == 1


@pytest.mark.parametrize("fails, kind", [
    (requests.ConnectionError("Connection aborted."), OllamaError),
    (requests.exceptions.ChunkedEncodingError("broken"), OllamaError),
    (requests.exceptions.SSLError("certificate"), OllamaError), (requests.ReadTimeout("slow"), OllamaTimeout),
    (requests.exceptions.InvalidURL("bad"), OllamaError), (ConnectionResetError(104, "reset"), OllamaError)])
def test_only_connect_failures_are_repeated(upstream, fails, kind):
    """After the first byte could have been read, nothing is sent twice."""
    upstream.post(GENERATE, body=fails)
    with pytest.raises(OllamaError) as caught:
        generate()
    assert type(caught.value) is kind and len(upstream.calls) == 1


def test_busy_is_tried_again_a_few_times(upstream):
    """Ollama's 503 is repeated, and the answer that then comes is the answer."""
    for _ in range(ollama.TRIES - 1):
        upstream.post(GENERATE, status=503, json={"error": "server busy"})
    upstream.post(GENERATE, body=lines(piece("Hi"), DONE))
    assert generate()[0] == ["Hi"] and len(upstream.calls) == ollama.TRIES


def test_a_connect_timeout_is_tried_again(upstream):
    """A host that does not accept in time is unavailable after a few tries."""
    upstream.post(GENERATE, body=requests.ConnectTimeout("slow"))
    with pytest.raises(OllamaUnavailable, match="ollama serve"):
        generate()
    assert len(upstream.calls) == ollama.TRIES


def test_no_try_begins_beyond_the_deadline(upstream, monkeypatch):
    """When the wait before the next try would pass the deadline, the failure stands."""
    monkeypatch.setattr(ollama, "BACKOFF_SECONDS", 10.0)
    upstream.post(GENERATE, status=503, json={"error": "server busy"})
    with pytest.raises(OllamaBusy):
        generate(timeout=1.0)
    assert len(upstream.calls) == 1


def test_the_pause_between_tries_can_be_cancelled(upstream, monkeypatch):
    """Nobody waits for a try that nobody wants."""
    monkeypatch.setattr(ollama, "BACKOFF_SECONDS", 10.0)
    upstream.post(GENERATE, status=503, json={"error": "server busy"})
    cancellation = Cancellation()
    timer = threading.Timer(0.05, cancellation.request)
    timer.start()
    with pytest.raises(Cancelled):
        ask(OllamaClient(Settings(), Watchdog()), cancellation=cancellation)
    timer.join()
    assert len(upstream.calls) == 1


def test_who_is_cancelled_before_sends_nothing(upstream):
    """A call does not begin after a request to stop."""
    cancellation = Cancellation()
    cancellation.request()
    with pytest.raises(Cancelled):
        ask(OllamaClient(Settings(), Watchdog()), cancellation=cancellation)
    assert len(upstream.calls) == 0


# The list of models and the version


def test_inventory_and_version(upstream):
    """The models that are objects, and the version if it is text."""
    upstream.get(TAGS, json={"models": [{"name": "a"}, 5, {"name": "b"}]})
    upstream.get(VERSION, json={"version": "0.33.0"})
    client = OllamaClient(Settings(), Watchdog())
    assert client.inventory(1) == [{"name": "a"}, {"name": "b"}] and client.version(1) == "0.33.0"


@pytest.mark.parametrize("body", [b"", b"x", b"[]", b"{}", b'{"models": {}}', b'{"models": null}', b"\xff"])
def test_a_list_of_models_that_is_none(upstream, body):
    """Another server behind the URL is an OllamaError that says to check it."""
    upstream.get(TAGS, body=body)
    with pytest.raises(OllamaError, match="OLLAMA_URL"):
        OllamaClient(Settings(), Watchdog()).inventory(1)


@pytest.mark.parametrize("body", [b"{}", b'{"version": 5}'])
def test_a_version_that_is_none(upstream, body):
    """A version that is missing or no text is unknown."""
    upstream.get(VERSION, body=body)
    assert OllamaClient(Settings(), Watchdog()).version(1) is None


# Over real sockets


@pytest.fixture(scope="module")
def shared_double():
    with OllamaDouble(slots=64) as double:
        yield double


@pytest.fixture
def double(shared_double):
    """A double as new."""
    shared_double.reset()
    return shared_double


def client_of(double, **env):
    return OllamaClient(Settings(ollama_url=double.url, parallel=64, **env), Watchdog())


def test_an_answer_over_the_wire(double):
    """Against a socket the text is whole, multi-byte characters too, and the counts are there."""
    pieces, completion = ask(client_of(double), question("Hello", max_tokens=500))
    assert "".join(pieces) == answer_for("Hello", n=500)
    assert completion.finish_reason == "stop" and completion.input_tokens and completion.tokens_per_second


@pytest.mark.parametrize("fault", ["split", "glued", "crlf", "blank_line", "controls", "text_in_last", "extra_fields",
                                   "single_json", "after_done", "long_line", "trickle"])
def test_odd_framing_changes_nothing(double, fault):
    """However the lines are cut, glued and padded, the answer is the same."""
    double.set(fault=fault, drip=0.0001, size=200_000)
    pieces, completion = ask(client_of(double), question("Hello", max_tokens=5))
    text = "".join(pieces)
    extra = {"blank_line": 0, "controls": 1, "text_in_last": 1}.get(fault, 0)
    assert completion.finish_reason == "length"
    assert text == answer_for("Hello", n=5) or (extra and text.replace("\x00\r\n", "").replace(" fin", ""))


@pytest.mark.parametrize("fault", [
    "reset", "close", "bad_http", "reset_midway", "close_midway", "cut_line", "error_line", "context_error", "eof",
    "eof_at_once", "invalid_json", "invalid_utf8", "lone_surrogate", "oom", "crashed", "redirect", "html_200",
    "html_502", "empty_200", "empty_502", "forbidden", "bad_method", "path_not_found", "done_false"])
def test_what_breaks_on_the_wire_is_an_ollama_error(double, fault):
    """A drop, a reset, a broken chunk, an end without done: OllamaError at once, and never a second call."""
    double.fail(fault)
    with pytest.raises(OllamaError) as caught:
        ask(client_of(double))
    assert type(caught.value) is OllamaError and str(caught.value).endswith((".", "Try again."))
    assert double.faults[fault] == 1


@pytest.mark.parametrize("fault", ["endless_garbage", "endless_tokens"])
def test_an_answer_without_an_end_is_refused(double, monkeypatch, fault):
    """A line or a text beyond any model's is not collected for ever."""
    monkeypatch.setattr(ollama_protocol, "LINE_LIMIT", 1 << 20)
    monkeypatch.setattr(ollama, "TEXT_LIMIT", 100)
    double.fail(fault)
    with pytest.raises(OllamaError, match="longer"):
        ask(client_of(double))


@pytest.mark.parametrize("fault", ["hang", "hang_after_headers", "hang_midway", "trickle", "endless_blanks"])
def test_the_deadline_cuts_whatever_is_waited_for(double, fault):
    """Before the headers, after them, between tokens, byte by byte: the deadline ends it and Ollama sees it."""
    double.set(fault=fault, drip=0.02)
    began = time.monotonic()
    with pytest.raises(OllamaTimeout, match="fewer tokens"):
        ask(client_of(double, timeout=0.2))
    assert time.monotonic() - began >= 0.2
    until(lambda: double.running == 0 and double.closed_early >= 1)


def test_the_deadline_holds_while_show_hangs(double):
    """The look at the model's stops is inside the same deadline."""
    double.set(show_fault="hang")
    with pytest.raises(OllamaTimeout):
        ask(client_of(double, timeout=0.2), question(stop=("x",)))
    assert double.calls("/api/generate") == []


@pytest.mark.parametrize("path, knob", [("inventory", "tags_fault"), ("version", "version_fault")])
def test_a_probe_is_bounded(double, path, knob):
    """The small calls end within the seconds given to them, whatever Ollama does."""
    double.set(**{knob: "hang"})
    with pytest.raises(OllamaTimeout):
        getattr(client_of(double), path)(0.1)
    double.set(**{knob: "endless_garbage"})
    with pytest.raises(OllamaError):
        getattr(client_of(double), path)(0.5)


@pytest.mark.parametrize("knobs, state", [
    ({"slots": 0}, {"waiting": 1}), ({"ttft": LONG}, {"running": 1}), ({"gap": LONG}, {"running": 1}),
    ({"gap": 0.01, "tokens": 3000}, {"running": 1}), ({"fault": "hang"}, {"running": 1})])
def test_a_cancelled_call_is_closed_upstream(double, knobs, state):
    """Waiting for a slot, for the first token or between two: Ollama is rid of the call within two seconds."""
    double.set(**knobs)
    cancellation, raised = Cancellation(), []

    def work():
        try:
            ask(client_of(double), question(max_tokens=5000), cancellation=cancellation)
        except Cancelled:
            raised.append(True)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    double.wait(**state)
    cancellation.request()
    double.wait(timeout=2.0, running=0, waiting=0, closed_early=1)
    thread.join(LONG)
    assert raised == [True]


def test_a_cut_before_the_connection_is_there_is_not_lost():
    """A call that is cut while it still connects is shut as soon as it has a socket; one that is over is left alone."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        call = Call()
        call.cut(Cancelled)
        call.cut(OllamaTimeout)
        call.attach(ours)
        assert theirs.recv(1) == b"" and call.cut_by is Cancelled
    call.cut(Cancelled)  # its socket is closed by now
    ours, theirs = socket.socketpair()
    with ours, theirs:
        call = Call()
        call.attach(ours)
        assert call.detach() is ours
        call.cut(Cancelled)
        ours.send(b"still open")
        assert theirs.recv(10) == b"still open"


def connections_made(client):
    """How many connections the client has ever opened."""
    pools = client._session.get_adapter("http://").poolmanager.pools
    return sum(pools[key].num_connections for key in pools.keys())


def test_a_connection_is_used_again_after_a_whole_answer(double):
    """Answers one after the other, and the small calls between them, take one connection."""
    client = client_of(double)
    for number in range(5):
        ask(client, question(f"Hello {number}", max_tokens=3 + 50 * (number % 2)))
        ask(client, question(f"Stop {number}", stop=("x",)))
        client.inventory(1)
        client.version(1)
    assert connections_made(client) == 1


def test_connections_are_not_piled_up():
    """Twenty calls at once leave at most twenty connections, and those of broken answers are closed."""
    with OllamaDouble(slots=64) as double:
        client = client_of(double)
        in_threads(20, lambda number: ask(client, question(f"Hello {number}")))
        assert double.connections == connections_made(client) <= 20
        double.fail("error_line")
        for _ in range(25):
            with pytest.raises(OllamaError):
                ask(client)
        double.fail()
        assert "".join(ask(client, question("Hello"))[0]) == answer_for("Hello", n=100)
        until(lambda: double.connections <= 20)


def test_a_restart_of_ollama_is_survived(double):
    """A pooled connection that died meanwhile costs nothing."""
    client = client_of(double)
    ask(client)
    double.restart()
    assert "".join(ask(client, question("Hello"))[0]) == answer_for("Hello", n=100)


def test_nobody_listening_is_unavailable(double):
    """A refused connection is tried a few times and then says what to start."""
    double.stop()
    try:
        with pytest.raises(OllamaUnavailable, match="ollama serve"):
            ask(client_of(double))
    finally:
        double.start()


def test_a_start_between_two_tries_is_enough(double, monkeypatch):
    """An Ollama that comes up while we try answers."""
    monkeypatch.setattr(ollama, "BACKOFF_SECONDS", 0.1)
    double.stop()
    timer = threading.Timer(0.05, double.start)
    timer.start()
    try:
        assert "".join(ask(client_of(double), question("Hello"))[0]) == answer_for("Hello", n=100)
    finally:
        timer.join()


def test_a_proxy_of_the_environment_is_not_used(double, monkeypatch):
    """HTTP_PROXY is no way to a local server, nor is a netrc file a place for its credentials."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    assert ask(client_of(double))[1].finish_reason


def test_many_threads_share_one_client(double):
    """Fifty generations at once through one client do not mix."""
    client = client_of(double)
    texts = in_threads(50, lambda number: "".join(ask(client, question(f"Hello {number}"))[0]))
    assert texts == [answer_for(f"Hello {number}", n=100) for number in range(50)]


# Segments as a network cuts them


@contextmanager
def raw_server(*segments, gap=0.02):
    """A server that answers one request with ``segments``, each a TCP write of its own."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        def serve():
            connection, _ = listener.accept()
            with connection:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connection.recv(65536)
                with suppress(OSError):  # the client need not read it all
                    for segment in segments:
                        connection.sendall(segment)
                        time.sleep(gap)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread.join(LONG)


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("cut", [1, 10, 30])
@pytest.mark.parametrize("status, body, kind", [
    ("404 Not Found", error("model 'llama3:8b' not found"), ModelNotFound),
    ("400 Bad Request", error(ENGINE), PromptTooLong)])
def test_an_error_in_two_segments_is_read_whole(status, body, kind, cut, chunked):
    """An error's body that the network cut in two is the same error."""
    parts = [body[:cut], body[cut:]]
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\n".encode()
    if chunked:
        head += b"Transfer-Encoding: chunked\r\n\r\n"
        parts = [b"%x\r\n%s\r\n" % (len(part), part) for part in parts] + [b"0\r\n\r\n"]
    else:
        head += b"Content-Length: %d\r\n\r\n" % len(body)
    with raw_server(head, *parts) as url, pytest.raises(kind):
        generate(ollama_url=url)


def test_an_error_body_without_an_end_is_not_read_for_ever(monkeypatch):
    """Only so much of an error is read."""
    monkeypatch.setattr(ollama, "ERROR_LIMIT", 1000)
    with raw_server(b"HTTP/1.1 500 Error\r\n\r\n", b"x" * 100_000) as url, pytest.raises(OllamaError, match="500"):
        generate(ollama_url=url)


@pytest.mark.parametrize("ending", ["chunked", "length", "close"])
def test_each_kind_of_body_is_read_to_its_end(ending):
    """Chunks, a length, or an end by closing: the answer is the same."""
    body = lines(piece("Hé"), piece(" you"), DONE)
    parts = [body[:20], body[20:57], body[57:]]
    head = b"HTTP/1.1 200 OK\r\n"
    if ending == "chunked":
        head += b"Transfer-Encoding: chunked\r\n"
        parts = [b"%x\r\n%s\r\n" % (len(part), part) for part in parts] + [b"0\r\n\r\n"]
    elif ending == "length":
        head += b"Content-Length: %d\r\n" % len(body)
    with raw_server(head + b"\r\n", *parts) as url:
        assert generate(ollama_url=url)[0] == ["Hé", " you"]


# LineReader


def read(data, cuts):
    """What a LineReader makes of ``data`` cut at ``cuts``: the records, and whether it raised."""
    reader, records, at = LineReader(), [], 0
    try:
        for cut in [*sorted(cuts), len(data)]:
            records += reader.feed(data[at:cut])
            at = cut
        records += reader.end()
    except OllamaError:
        return records, True
    return records, False


RECORDS = st.dictionaries(st.text(max_size=3), st.text(max_size=5) | st.integers(-9, 9) | st.none(), max_size=2)
NDJSON = st.lists(RECORDS.map(orjson.dumps) | st.sampled_from([b"", b" ", b"\r", b"\t \r"]), max_size=8).map(b"\n".join)


@settings(max_examples=100, deadline=None)
@given(st.data(), NDJSON, st.booleans())
def test_ndjson_split_anywhere_gives_the_same_records(data, body, ended):
    """Cuts inside characters, between CR and LF, with or without a last line break: the records are all there."""
    body += b"\n" if ended else b""
    cuts = data.draw(st.lists(st.integers(0, len(body)), max_size=10))
    assert read(body, cuts) == ([orjson.loads(line) for line in body.split(b"\n") if line.strip()], False)
    assert read(body, range(len(body))) == read(body, [])


NOISE = st.binary(max_size=80) | st.lists(
    st.sampled_from([b"{", b"}", b'{"a":1}', b"\n", b'"', b"\\ud83d", b"\xff", b"[]", b"\r\n", b" ", b"1e999", b"\x00",
                     b'{"a":"\xc3', b"\xa9", b"NaN", b"null"]), max_size=14).map(b"".join)


@settings(max_examples=150, deadline=None)
@given(st.data(), NOISE)
def test_any_bytes_are_records_or_an_ollama_error(data, body):
    """Whatever comes, however it is cut, the outcome is the same: records, then perhaps OllamaError."""
    cuts = data.draw(st.lists(st.integers(0, len(body)), max_size=10))
    records, failed = whole = read(body, [])
    assert read(body, cuts) == whole and read(body, range(len(body))) == whole
    assert all(type(record) is dict for record in records)


def test_a_line_has_a_limit(monkeypatch):
    """A line without an end is refused once it is longer than any answer, and the memory stays bounded."""
    monkeypatch.setattr(ollama_protocol, "LINE_LIMIT", 1000)
    reader, fed = LineReader(), 0
    with pytest.raises(OllamaError, match="longer"):
        for _ in range(100):
            list(reader.feed(b"x" * 90))
            fed += 90
    assert fed <= 1000


def test_each_byte_is_searched_once():
    """A long line in small pieces costs time by its length, not by its square: two million feeds of one byte."""
    reader = LineReader()
    line = b'{"a": "' + b"x" * 400_000 + b'"}\n'
    records = []
    for at in range(0, len(line), 2):
        records += reader.feed(line[at:at + 2])
    assert [len(record["a"]) for record in records] == [400_000]
