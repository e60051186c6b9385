"""Answers in OpenAI's form: values in, bytes out, to the letter."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_api.answer import Answer, Completion, Piece
from llama_api.api.openai_answers import ChatGrammar, CompletionGrammar, Identity
from llama_api.api.openai_errors import FieldError, error_object, headers_of, status_of
from llama_api.api.openai_requests import OpenAIRequest
from llama_api.cache import Entry
from llama_api.core import Reply
from llama_api.errors import (MalformedJSON, ModelNotFound, ModelNotServed, NotCached, OllamaBrokeOff, OllamaBusy,
                              OllamaRefused, OllamaTimeout, OllamaUnavailable, PromptTooLong, QueueFull, Unauthorized)
from llama_api.faults import fault_of
from llama_api.model_call import CHAT, ModelCall
from llama_api.waiting import Wait

CALL = ModelCall.of(CHAT, "llama3:8b", messages=[{"role": "user", "content": "Hi"}], tools=[{"type": "function"}])
HEAD = '"id":"id-1","object":"{}","created":1763900000,"model":"llama3:8b","system_fingerprint":"fp_365c0bd3c000"'
CHUNK = "data: {" + HEAD.format("chat.completion.chunk") + ',"choices":[{"index":0,'
TEXT_CHUNK = "data: {" + HEAD.format("text_completion") + ',"choices":[{"index":0,'
DIGEST = "365c0bd3c000" + "0" * 52
WEATHER = {"id": "call_a1", "function": {"index": 0, "name": "weather", "arguments": {"city": "Zürich", "a": [1, 2]}}}
NAMELESS = {"function": {"name": "time", "arguments": {}}}
TOKEN = {"token": "Hel", "logprob": -0.5, "bytes": [72, 101, 108], "top_logprobs": [{"token": "H", "logprob": -1.5}]}
BARE = {"token": "lo", "logprob": -2}
DONE = "data: [DONE]\n\n"


def answer(text="", finish_reason="stop", counts=(11, 3), **fields):
    return Answer("llama3:8b", text, completion=Completion(finish_reason, *counts), digest=DIGEST, **fields)


def grammar(kind=ChatGrammar, **asked):
    return kind(OpenAIRequest(CALL, {}, **asked), Identity("id-1", 1763900000, lambda: DIGEST))


def streamed(found, kind=ChatGrammar, pieces=None, reply=Reply(0.0, "miss", "miss", None), **asked):
    """The text of a stream."""
    writer = grammar(kind, **asked)
    parts = [writer.pieces([piece], reply) for piece in (found.pieces if pieces is None else pieces)]
    return b"".join([*parts, writer.end(found, reply, {})]).decode()


def whole(found, kind=ChatGrammar, **asked):
    return json.loads(grammar(kind, **asked).whole(found, None, {}))


def test_a_plain_chat():
    """Every member that the clients read, in a body that is one line."""
    assert grammar().whole(answer("Hello!"), None, {}).decode() == "{" + HEAD.format("chat.completion") + (
        ',"choices":[{"index":0,"message":{"role":"assistant","content":"Hello!","refusal":null},"logprobs":null,'
        '"finish_reason":"stop"}],"usage":{"prompt_tokens":11,"completion_tokens":3,"total_tokens":14}}')


def test_tool_calls():
    """Arguments are text, in the model's order; an id that Ollama gave is kept, another follows from the request."""
    message = whole(answer(tool_calls=(WEATHER, NAMELESS)))["choices"][0]["message"]
    first, second = message["tool_calls"]
    assert message["content"] is None
    assert first == {"id": "call_a1", "type": "function", "function": {
        "name": "weather", "arguments": '{"city":"Zürich","a":[1,2]}'}}
    assert second["id"].startswith("call_") and len(second["id"]) == 13 and second["function"]["arguments"] == "{}"
    assert whole(answer(tool_calls=(WEATHER, NAMELESS)))["choices"][0]["message"] == message, "on a hit too"
    assert whole(answer("So", tool_calls=(WEATHER,)))["choices"][0]["message"]["content"] == "So"
    only = whole(answer(tool_calls=(WEATHER, NAMELESS)), one_call=True)
    assert only["choices"][0]["message"]["tool_calls"] == [first]


@pytest.mark.parametrize("reason, calls, told", [
    ("stop", (), "stop"), ("length", (), "length"), (None, (), "stop"), ("stop", (WEATHER,), "tool_calls"),
    ("length", (WEATHER,), "length"), (None, (WEATHER,), "tool_calls")])
def test_the_reason_is_never_null(reason, calls, told):
    """Tool calls are a reason, unless the answer was cut; in a stream the reason has a chunk of its own."""
    found = answer("x", finish_reason=reason, tool_calls=calls)
    assert whole(found)["choices"][0]["finish_reason"] == told
    assert streamed(found).count(f'"finish_reason":"{told}"') == 1


@pytest.mark.parametrize("counts", [(None, 3), (11, None), (None, None)])
def test_usage_is_whole_or_null(counts):
    """Clients read all three counts unguarded; a stream then has no chunk of them."""
    assert whole(answer("x", counts=counts))["usage"] is None
    assert '"choices":[]' not in streamed(answer("x", counts=counts), usage=True)


def test_thinking_and_logprobs():
    """`reasoning` is next to `content`; empty bytes are null, absent alternatives a list."""
    choice = whole(answer("Hello", thinking="Hm", logprobs=(TOKEN, BARE)))["choices"][0]
    assert choice["message"]["reasoning"] == "Hm"
    assert choice["logprobs"] == {"refusal": None, "content": [
        {**TOKEN, "top_logprobs": [{"token": "H", "logprob": -1.5, "bytes": None}]},
        {**BARE, "bytes": None, "top_logprobs": []}]}


def test_a_streamed_chat():
    """The role comes first and once, the reason last and alone; all chunks share what they repeat."""
    assert streamed(answer("Hello"), pieces=[Piece("Hel"), Piece(), Piece("lo")]) == (
        CHUNK + '"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]}\n\n'
        + CHUNK + '"delta":{"content":"Hel"},"logprobs":null,"finish_reason":null}]}\n\n'
        + CHUNK + '"delta":{"content":"lo"},"logprobs":null,"finish_reason":null}]}\n\n'
        + CHUNK + '"delta":{},"logprobs":null,"finish_reason":"stop"}]}\n\n' + DONE)


def test_a_stored_answer_has_the_fingerprint_of_its_own_build():
    """Streamed and plain alike, though the model was built again since."""
    stored = Answer("llama3:8b", "Hello", completion=Completion("stop"), digest="0" * 64)
    stale = streamed(stored, reply=Reply(0.0, "stale", "stale", Entry(stored, 0.0, 0.0)))
    assert whole(stored)["system_fingerprint"] == "fp_000000000000"
    assert stale.count("fp_000000000000") == stale.count("data: {") and DIGEST[:12] not in stale


def test_an_empty_stream():
    """It has a role, a reason and an end."""
    assert streamed(answer("")) == (
        CHUNK + '"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]}\n\n'
        + CHUNK + '"delta":{},"logprobs":null,"finish_reason":"stop"}]}\n\n' + DONE)


def test_streamed_tool_calls_with_usage():
    """Each call is a delta with an index of its own over the whole stream; every other chunk has usage null."""
    found = answer(tool_calls=(WEATHER, WEATHER))
    function = ('"type":"function","function":{"name":"weather",'
                '"arguments":"{\\"city\\":\\"Zürich\\",\\"a\\":[1,2]}"}}]}')
    ended = ',"logprobs":null,"finish_reason":null}],"usage":null}\n\n'
    assert streamed(found, pieces=[Piece(tool_calls=(WEATHER,))] * 2, usage=True) == (
        CHUNK + '"delta":{"role":"assistant","content":null}' + ended
        + CHUNK + '"delta":{"tool_calls":[{"index":0,"id":"call_a1",' + function + ended
        + CHUNK + '"delta":{"tool_calls":[{"index":1,"id":"call_a1",' + function + ended
        + CHUNK + '"delta":{},"logprobs":null,"finish_reason":"tool_calls"}],"usage":null}\n\n'
        + "data: {" + HEAD.format("chat.completion.chunk")
        + ',"choices":[],"usage":{"prompt_tokens":11,"completion_tokens":3,"total_tokens":14}}\n\n' + DONE)
    assert '"index":1' not in streamed(found, one_call=True)


def test_streamed_thinking_and_logprobs():
    """Thought comes before text; the log-probabilities go with their piece, an empty one too."""
    text = streamed(answer("Hel"), pieces=[Piece(thinking="Hm"), Piece("Hel", logprobs=(TOKEN,)),
                                           Piece(logprobs=(BARE,))])
    deltas = [json.loads(line[6:])["choices"][0] for line in text.split("\n\n")[1:-3]]
    assert [delta["delta"] for delta in deltas] == [{"reasoning": "Hm"}, {"content": "Hel"}, {"content": ""}]
    assert [delta["logprobs"] and delta["logprobs"]["content"][0]["token"] for delta in deltas] == [None, "Hel", "lo"]


def test_a_plain_and_a_streamed_completion():
    """One object name for both, no role, and log-probabilities in the old form, counted on over the stream."""
    found = answer("Hello", logprobs=(TOKEN, BARE))
    assert grammar(CompletionGrammar).whole(found, None, {}).decode() == "{" + HEAD.format("text_completion") + (
        ',"choices":[{"index":0,"text":"Hello","logprobs":{"tokens":["Hel","lo"],"token_logprobs":[-0.5,-2],'
        '"top_logprobs":[{"H":-1.5},{}],"text_offset":[0,3]},"finish_reason":"stop"}],'
        '"usage":{"prompt_tokens":11,"completion_tokens":3,"total_tokens":14}}')
    assert streamed(found, CompletionGrammar, [Piece("Hel", logprobs=(TOKEN,)), Piece("lo", logprobs=(BARE,))]) == (
        TEXT_CHUNK + '"text":"Hel","logprobs":{"tokens":["Hel"],"token_logprobs":[-0.5],"top_logprobs":[{"H":-1.5}],'
        '"text_offset":[0]},"finish_reason":null}]}\n\n'
        + TEXT_CHUNK + '"text":"lo","logprobs":{"tokens":["lo"],"token_logprobs":[-2],"top_logprobs":null,'
        '"text_offset":[3]},"finish_reason":null}]}\n\n'
        + TEXT_CHUNK + '"text":"","logprobs":null,"finish_reason":"stop"}]}\n\n' + DONE)


PIECES = st.lists(st.builds(Piece, st.text("ab é漢", max_size=3), st.text("xy", max_size=2),
                            st.lists(st.sampled_from([WEATHER, NAMELESS]), max_size=2).map(tuple),
                            st.lists(st.sampled_from([TOKEN, BARE]), max_size=2).map(tuple)), max_size=6)


@given(PIECES)
def test_the_stream_joins_to_the_plain_answer(pieces):
    """Text, thought, tool calls and log-probabilities, however the pieces came."""
    found = Answer.of(pieces, Completion("stop", 1, 2), model="llama3:8b", digest=DIGEST)
    choices = [json.loads(line[6:])["choices"][0] for line in streamed(found, pieces=pieces).split("\n\n")[:-2]]
    deltas = [choice["delta"] for choice in choices]
    assert [("role" in delta) for delta in deltas] == [True] + [False] * (len(deltas) - 1)
    plain = whole(found)["choices"][0]
    message = plain["message"]
    assert "".join(delta.get("content") or "" for delta in deltas) == (message["content"] or "")
    assert "".join(delta.get("reasoning", "") for delta in deltas) == message.get("reasoning", "")
    calls = [call for delta in deltas for call in delta.get("tool_calls", ())]
    assert [call.pop("index") for call in calls] == list(range(len(calls))) and calls == message.get("tool_calls", [])
    tokens = [token for choice in choices for token in (choice["logprobs"] or {"content": []})["content"]]
    assert tokens == (plain["logprobs"] or {"content": []})["content"]


def test_waiting_and_failing():
    """A comment reports the wait; a failure is an object that every client recognizes, without [DONE]."""
    writer = grammar()
    assert writer.waiting(Wait(2, 7.4)) == b": waiting, 2 before you, about 7 s\n\n"
    error = OllamaBrokeOff()
    assert writer.failed(fault_of(error), error) == (
        b'data: {"error":{"message":"Ollama broke off before the answer was complete; its log says why.",'
        b'"type":"server_error","param":null,"code":"ollama-error"}}\n\n')
    refused = OllamaRefused(400, "json: cannot unmarshal bool into Go struct field")
    assert b'"param":"tools","code":"invalid_value"' in writer.failed(fault_of(refused), refused)


INVALID, SERVER = "invalid_request_error", "server_error"


@pytest.mark.parametrize("error, status, kind, param, code, retried, after", [
    (MalformedJSON("it is not"), 400, INVALID, None, "invalid_json", None, None),
    (FieldError("messages[0]", "invalid_type", "must be"), 400, INVALID, "messages[0]", "invalid_type", None, None),
    (PromptTooLong(9001, 8192), 400, INVALID, None, "context_length_exceeded", None, None),
    (Unauthorized(), 401, INVALID, None, "invalid_api_key", None, None),
    (ModelNotServed("gpt-4", ["llama3:8b"]), 404, INVALID, "model", "model_not_found", None, None),
    (ValueError("boom"), 500, SERVER, None, "internal-error", "false", None),
    (OllamaBrokeOff(), 502, SERVER, None, "ollama-error", None, None),
    (OllamaRefused(400, "boom"), 502, SERVER, None, "ollama-error", "false", None),
    (OllamaRefused(500, "boom"), 502, SERVER, None, "ollama-error", None, None),
    (QueueFull(64, 300), 503, SERVER, None, "overloaded", "true", "59"),
    (QueueFull(64, 0), 503, SERVER, None, "overloaded", "true", "1"),
    (OllamaBusy(), 503, SERVER, None, "overloaded", "true", "5"),
    (OllamaUnavailable(), 503, SERVER, None, "ollama-unavailable", "true", "5"),
    (ModelNotFound("llama3:8b"), 503, SERVER, None, "model-not-found", "false", "59"),
    (OllamaTimeout(), 504, SERVER, None, "ollama-timeout", "false", None),
    (NotCached(), 504, SERVER, None, "not-cached", "false", None)])
def test_a_failure_in_openais_words(error, status, kind, param, code, retried, after):
    """Status, body, and the headers that say whether and when to retry."""
    fault = fault_of(error)
    body = error_object(fault, error)["error"]
    assert body.pop("message") and "boom" not in str(body)
    assert (status_of(fault), body) == (status, {"type": kind, "param": param, "code": code})
    headers = headers_of(fault, error)
    assert (headers.get("x-should-retry"), headers.get("Retry-After")) == (retried, after)


@pytest.mark.parametrize("error, size", [(PromptTooLong(9001, 8192), True), (PromptTooLong(), False)])
def test_every_client_knows_a_prompt_that_is_too_long(error, size):
    """The message has the words that each of them looks for."""
    message = error_object(fault_of(error), error)["error"]["message"]
    for words in ("This model's maximum context length is", "prompt is too long", "context_length_exceeded"):
        assert words in message
    assert ("8192 tokens" in message and "9001 tokens" in message) is size
