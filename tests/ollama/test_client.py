"""The client of Ollama without a socket: what it sends, and what it makes of every answer."""

import json

import orjson
import pytest
import requests

from llama_api.answer import Completion, Piece
from llama_api.errors import (ModelNotFound, NotOllama, OllamaBrokeOff, OllamaBusy, OllamaError, OllamaGarbled,
                              OllamaRefused, OllamaReported, OllamaReset, OllamaTimeout, OllamaUnavailable,
                              OllamaUntrusted, PromptTooLong)
from llama_api.model_call import CHAT, EMBED, EMBEDDINGS, ModelCall
from llama_api.ollama import client as module
from llama_api.waiting import Cancellation, Cancelled
from tests.ollama.scripted_server import BASE, DONE, TOO_LONG, ask, client_of, error, lines, record
from tests.support.fakes import call

GENERATE, SHOW, TAGS, PS, VERSION = (
    f"{BASE}/api/{name}" for name in ("generate", "show", "tags", "ps", "version"))
STOPS = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
PARAMETERS = "num_keep                       24\n" + "\n".join(f'stop                           "{s}"' for s in STOPS)
MODEL = "llama3:8b"
TEXTS = {"input": ["sky", "sea"]}


def sent(upstream, url=GENERATE):
    """The bodies of all calls of ``url``."""
    return [json.loads(call.request.body) for call in upstream.calls if call.request.url == url]


# What is sent


def test_the_call_is_sent_as_it_is(upstream):
    """Its body and that a stream is wanted, nothing else."""
    upstream.post(GENERATE, body=lines(record("Hi"), DONE))
    ask(client_of())
    assert sent(upstream) == [{
        "model": MODEL, "prompt": "Why is the sky blue?", "stream": True, "truncate": False,
        "options": {"num_predict": 100, "temperature": 0.7}}]


@pytest.mark.parametrize("keep_alive", [0, -1, 300, 1.5, "10m"])
def test_keep_alive_is_sent_as_it_is_set(upstream, keep_alive):
    """A number stays a number, zero too; a duration is text."""
    upstream.post(GENERATE, body=lines(DONE))
    ask(client_of(keep_alive=keep_alive))
    assert sent(upstream)[0]["keep_alive"] == keep_alive


def test_a_chat_goes_to_its_own_endpoint(upstream):
    """Its messages are sent, and its records are read."""
    messages = [{"role": "user", "content": "Hi"}]
    upstream.post(BASE + CHAT, body=lines({"message": {"role": "assistant", "content": "Hello"}}, DONE))
    assert ask(client_of(), ModelCall.of(CHAT, MODEL, messages=messages))[0] == [Piece("Hello")]
    assert sent(upstream, BASE + CHAT) == [{"model": MODEL, "messages": messages, "stream": True}]


@pytest.mark.parametrize("endpoint, fields, reply, count", [
    (EMBED, TEXTS, {"embeddings": [[0.5], [2.0]], "prompt_eval_count": 4}, 4),
    (EMBEDDINGS, {"prompt": "sky"}, {"embedding": [0.5]}, None)])
def test_an_embedding_is_one_plain_object(upstream, endpoint, fields, reply, count):
    """No stream is asked for; the vectors are one piece, and an embedding always ends well."""
    upstream.post(BASE + endpoint, json=reply)
    [piece], completion = ask(client_of(), ModelCall.of(endpoint, MODEL, **fields))
    assert piece.vectors == (b"\0\0\0?", b"\0\0\0@")[:len(piece.vectors)] and piece.vectors
    assert completion == Completion("stop", count)
    assert sent(upstream, BASE + endpoint) == [{"model": MODEL, **fields}]


def test_nothing_but_plain_json_is_in_the_headers(upstream):
    """No Origin, no cookie, no agent, no compression."""
    upstream.post(GENERATE, body=lines(DONE), headers={"Set-Cookie": "a=b"})
    client = client_of()
    ask(client), ask(client)
    request = upstream.calls[1].request
    assert {name.lower(): value for name, value in request.headers.items()} == {
        "content-type": "application/json", "accept-encoding": "identity", "content-length": str(len(request.body))}


@pytest.mark.parametrize("base", ["http://gpu:1/ollama", "https://gpu"])
def test_the_base_url_may_have_a_path(upstream, base):
    """The endpoints go below whatever path the URL has."""
    upstream.post(base + "/api/generate", body=lines(DONE))
    assert ask(client_of(base))[1].finish_reason == "stop"


def test_credentials_in_the_url_are_sent(upstream):
    """User and password become basic authentication, for a proxy in front of Ollama."""
    upstream.post("http://me:pw@127.0.0.1:11434/api/generate", body=lines(DONE))
    ask(client_of("http://me:pw@127.0.0.1:11434"))
    assert upstream.calls[0].request.headers["Authorization"] == "Basic bWU6cHc="


def test_the_models_stops_are_asked_for_once_a_build(upstream):
    """/api/show is read before the first list of stops and again for another digest; without stops never."""
    upstream.post(SHOW, json={"parameters": PARAMETERS})
    upstream.post(GENERATE, body=lines(DONE))
    client = client_of()
    for stop, digest, shows in (([], "one", 0), (["x"], "one", 1), (["y", STOPS[0]], "one", 1), (["x"], "two", 2),
                                (["x"], None, 3), (["x"], None, 4)):
        ask(client, call(options={"stop": stop or None}), digest)
        assert len(sent(upstream, SHOW)) == shows
        assert sent(upstream)[-1]["options"].get("stop") == (list(dict.fromkeys(STOPS + stop)) if stop else None)


def test_a_failing_show_fails_the_generation(upstream):
    """Without the model's own stops a list is not sent: it would replace them."""
    upstream.post(SHOW, status=404, json={"error": "model 'llama3:8b' not found"})
    with pytest.raises(ModelNotFound):
        ask(client_of(), call(options={"stop": ["x"]}))
    assert sent(upstream) == []


@pytest.mark.parametrize("keep_alive, told", [(None, {}), ("10m", {"keep_alive": "10m"}), (0, {}), ("0s", {})])
def test_a_load_is_an_empty_prompt(upstream, keep_alive, told):
    """In the window that generations have; a ``keep_alive`` of no time would unload the model again."""
    upstream.post(GENERATE, json=DONE | {"done_reason": "load"})
    client_of(keep_alive=keep_alive, num_ctx=4096).load(MODEL, Cancellation())
    assert sent(upstream) == [{"model": MODEL, "stream": False, "options": {"num_ctx": 4096}, **told}]


def test_who_is_cancelled_before_sends_nothing(upstream):
    """A call does not begin after a request to stop."""
    cancellation = Cancellation()
    cancellation.request()
    with pytest.raises(Cancelled):
        ask(client_of(), cancellation=cancellation)
    assert len(upstream.calls) == 0


# What is made of a good answer


def test_pieces_and_counts(upstream):
    """The pieces go out as they are, the counts and durations are Ollama's own."""
    upstream.post(GENERATE, body=lines(record("The"), record(" ské"), record("\n漢😀"), DONE))
    assert ask(client_of()) == ([Piece("The"), Piece(" ské"), Piece("\n漢😀")],
                                Completion("stop", 17, 50, eval_duration=500_000_000))


def test_text_in_the_last_record_counts(upstream):
    """An answer as one object is taken like a stream."""
    upstream.post(GENERATE, json=DONE | {"response": "all of it"})
    assert ask(client_of())[0] == [Piece("all of it")]


def test_a_render_alone_is_an_answer(upstream):
    """Ollama's ``done`` is false with it; nothing was generated."""
    upstream.post(GENERATE, json=DONE | {"done": False, "_debug_info": {"rendered_template": "<|user|>Hi"}})
    assert ask(client_of())[1].debug_info == {"rendered_template": "<|user|>Hi"}


# What is made of a bad one: each to its type, with a cure, without Ollama's own words

SECRET = "secret-host /usr/lib/ollama/x"
HTML = f"<html>502 Bad Gateway {SECRET}".encode()
TAIL = lines(record("x"), DONE)
BAD = [
    # status, body, type, words of the sentence
    (400, error("json: cannot unmarshal array into Go struct field " + SECRET), OllamaRefused, "status 400"),
    (400, error(TOO_LONG), PromptTooLong, "9000 tokens, room for 8192"),
    (400, error(TOO_LONG.replace("9000}", '"secret-host"}')), PromptTooLong, "shorten"),
    (400, error("the prompt is longer than the context length currently available " + SECRET), PromptTooLong, "window"),
    (400, error("the input length exceeds the context length " + SECRET), PromptTooLong, "shorten"),
    (400, error("input length exceeds maximum context length"), PromptTooLong, "shorten"),
    (400, error('{"error": {"type": "other", "message": "' + SECRET + '"}}'), OllamaRefused, "400"),
    (400, error('{"error": "' + SECRET + '"}'), OllamaRefused, "400"), (400, error("[1]"), OllamaRefused, "400"),
    (401, orjson.dumps({"error": "unauthorized", "signin_url": SECRET}), OllamaRefused, "401"),
    (403, b"", NotOllama, "host names"), (404, error(f"model '{SECRET}' not found"), ModelNotFound, "ollama pull"),
    (404, b"404 page not found " + SECRET.encode(), NotOllama, "OLLAMA_URL"),
    (405, b"405 method not allowed", NotOllama, "OLLAMA_URL"),
    (500, error("llama-server process has terminated: exit status 2: " + SECRET), OllamaRefused, "log"),
    (500, error(TOO_LONG), OllamaRefused, "500"), (500, orjson.dumps({"error": {"message": SECRET}}), NotOllama, "500"),
    (500, b"[]", NotOllama, "OLLAMA_URL"), (500, b"", NotOllama, "OLLAMA_URL"), (502, HTML, NotOllama, "OLLAMA_URL"),
    (503, error("server busy, please try again.  maximum pending requests exceeded"), OllamaBusy, "try again"),
    (204, b"", NotOllama, "204"), (206, TAIL, NotOllama, "206"),
    *((status, b"", NotOllama, "OLLAMA_URL") for status in (301, 302, 307, 308)),
    (200, b"", OllamaBrokeOff, "broke off"), (200, b"\n \n", OllamaBrokeOff, "broke off"),
    (200, lines(record("x")), OllamaBrokeOff, "broke off"), (200, TAIL[:-30], OllamaGarbled, "protocol"),
    *((200, body, OllamaGarbled, "protocol") for body in (
        HTML, b"null\n", b"[]\n", b"42\n", b'{"response": "\xff"}\n', b'{"response": "\\ud83d"}\n',
        b'{"a":' * 5000 + b"1" + b"}" * 5000 + b"\n")),
    (200, lines({"response": 5}), OllamaGarbled, "not text"),
    *((200, lines(record("x"), {"error": told}), OllamaReported, "while generating") for told in (
        "unexpected EOF " + SECRET, {"message": SECRET}, "")),
    (200, lines(DONE | {"error": SECRET}), OllamaReported, "while generating"),
    *((200, lines(DONE | {"done": done}), OllamaBrokeOff, "broke off") for done in (False, "yes", 1, None))]


@pytest.mark.parametrize("status, body, kind, words", BAD)
def test_every_bad_answer_has_its_error(upstream, status, body, kind, words):
    """Each is of its type, its sentence helps, none of Ollama's words are in it, and nothing is sent again."""
    upstream.post(GENERATE, status=status, body=body, headers={"Location": "http://evil.example/api/generate"})
    with pytest.raises(OllamaError) as caught:
        ask(client_of())
    sentence = str(caught.value)
    assert type(caught.value) is kind and words in sentence and sentence.endswith((".", "`")) and len(sentence) < 200
    assert "secret" not in sentence and "/usr" not in sentence
    assert len(upstream.calls) == 1


@pytest.mark.parametrize("status, body, kind", [
    (200, b"", OllamaGarbled), (200, b"[1]", OllamaGarbled), (200, b"{}", OllamaGarbled),
    (200, b'{"embeddings": [[1.0]]}', OllamaGarbled), (200, b'{"embeddings": [[1.0], ["x"]]}', OllamaGarbled),
    (400, error("the input length exceeds the context length"), PromptTooLong),
    (404, error("model not found"), ModelNotFound), (503, error("busy"), OllamaBusy), (500, b"", NotOllama)])
def test_an_embedding_that_failed_has_its_error(upstream, status, body, kind):
    """The same ones, and garbage for vectors that are none."""
    upstream.post(BASE + EMBED, status=status, body=body)
    with pytest.raises(kind):
        ask(client_of(), ModelCall.of(EMBED, MODEL, **TEXTS))


@pytest.mark.parametrize("fails, kind", [
    (requests.ConnectionError("Connection aborted."), OllamaReset), (ConnectionResetError(104, "reset"), OllamaReset),
    (requests.exceptions.ChunkedEncodingError("broken"), OllamaReset),
    (requests.exceptions.SSLError("certificate"), OllamaUntrusted), (requests.ReadTimeout("slow"), OllamaTimeout),
    (requests.exceptions.InvalidURL("bad"), OllamaReset), (requests.ConnectTimeout("slow"), OllamaUnavailable)])
def test_a_failure_of_the_connection_has_its_error(upstream, fails, kind):
    """For any exception of the library; only calls that did not reach Ollama say that nothing accepts connections."""
    upstream.post(GENERATE, body=fails)
    with pytest.raises(OllamaError) as caught:
        ask(client_of())
    assert type(caught.value) is kind and len(upstream.calls) == 1


def test_pieces_before_an_error_are_published(upstream):
    """Also those of the same segment."""
    upstream.post(GENERATE, body=lines(record("a"), record("b"), {"error": "unexpected EOF"}))
    pieces = []
    with pytest.raises(OllamaReported):
        client_of().generate(call(), None, 30.0, Cancellation(), pieces.extend)
    assert pieces == [Piece("a"), Piece("b")]


@pytest.mark.parametrize("status, body", [(500, error("cudaMalloc failed " + "x" * 5000)),
                                          (200, lines({"error": "cudaMalloc failed " + "x" * 5000}))])
def test_ollamas_own_words_are_logged(upstream, caplog, monkeypatch, status, body):
    """The operator finds them, cut to a bearable length, without what was asked."""
    monkeypatch.setattr(module.logger, "handlers", [caplog.handler])
    upstream.post(GENERATE, status=status, body=body)
    with pytest.raises(OllamaError):
        ask(client_of(), call("x" * 100))
    message, = {record.getMessage() for record in caplog.records}
    assert message == f"Ollama answered {status}: cudaMalloc failed [prompt]"


# The small calls


def test_inventory_loaded_models_and_version(upstream):
    """The models that are objects, and the version if it is text."""
    for url in (TAGS, PS):
        upstream.get(url, json={"models": [{"name": "a"}, 5, {"name": "b"}]})
    upstream.get(VERSION, json={"version": "0.33.0"})
    client = client_of()
    assert client.inventory(1) == client.loaded(1) == [{"name": "a"}, {"name": "b"}] and client.version(1) == "0.33.0"


@pytest.mark.parametrize("body", [b"", b"x", b"[]", b"{}", b'{"models": {}}', b'{"models": null}', b"\xff"])
def test_a_list_of_models_that_is_none(upstream, body):
    """Another server behind the URL is an error that says to check it."""
    upstream.get(TAGS, body=body)
    with pytest.raises(OllamaGarbled, match="OLLAMA_URL"):
        client_of().inventory(1)


@pytest.mark.parametrize("body", [b"{}", b'{"version": 5}'])
def test_a_version_that_is_none(upstream, body):
    """A version that is missing or not text is unknown."""
    upstream.get(VERSION, body=body)
    assert client_of().version(1) is None
