"""/api/chat of the embedded Ollama, and the parts of a generation other than its text."""

import json
import math

import pytest

from tests.embedded.conftest import MODEL

USER = ("user", "Who are you?")
SYSTEM = ("system", "You are a pirate.")
SCHEMA = {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"]}


def records(answer):
    return [json.loads(line) for line in answer.text.splitlines()]


def rendered(answer):
    """The model's input for a request with ``_debug_render_only``."""
    return answer.json()["_debug_info"]["rendered_template"]


def test_a_chat_has_ollamas_shape(chat):
    """A message of the assistant, a reason and figures; no context."""
    answer = chat(USER)
    assert answer.headers["Content-Type"] == "application/json; charset=utf-8"
    assert answer.json().keys() == {
        "model", "created_at", "message", "done", "done_reason", "total_duration", "load_duration",
        "prompt_eval_count", "prompt_eval_duration", "eval_count", "eval_duration"}
    assert answer.json()["message"]["role"] == "assistant"
    assert answer.json()["message"]["content"]
    assert (answer.json()["done"], answer.json()["done_reason"], answer.json()["eval_count"]) == (True, "length", 8)


def test_a_stream_of_messages_joins_to_the_plain_one(chat, post):
    """It is the default; each record has a message, and only the last one is done."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Who are you?"}],
            "options": {"temperature": 0, "num_predict": 8}}
    streamed = post("/api/chat", body)
    assert streamed.headers["Content-Type"] == "application/x-ndjson"
    *pieces, last = records(streamed)
    assert "".join(piece["message"]["content"] for piece in pieces) == chat(USER).json()["message"]["content"]
    assert [piece["done"] for piece in pieces] == [False] * len(pieces)
    assert (last["message"], last["done"], last["eval_count"]) == ({"role": "assistant", "content": ""}, True, 8)


def test_the_template_of_the_model_is_used(chat):
    """Turns in ChatML, roles in any case, and the model's default system message only where there is none."""
    turns = chat(("SYSTEM", "Be brief."), ("user", "Hi"), ("assistant", "Ho"), ("user", "?"), _debug_render_only=True)
    assert rendered(turns) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\nHo<|im_end|>\n<|im_start|>user\n?<|im_end|>\n<|im_start|>assistant\n")
    assert rendered(chat(USER, _debug_render_only=True)).startswith("<|im_start|>system\nYou are a helpful")
    assert turns.json()["done"] is False


def test_a_chat_and_a_prompt_of_the_same_text_have_the_same_answer(chat, ask):
    """System and user give what `system` and `prompt` give."""
    prompted = ask(USER[1], system=SYSTEM[1]).json()
    chatted = chat(SYSTEM, USER).json()
    assert chatted["message"]["content"] == prompted["response"] != chat(USER).json()["message"]["content"]
    assert chatted["prompt_eval_count"] == prompted["prompt_eval_count"]


@pytest.mark.parametrize("begun, text", [("My name is Jo", "<|im_start|>assistant\nMy name is Jo"),
                                         ("", "<|im_start|>assistant\n")])
def test_a_last_message_of_the_assistant_is_continued(chat, begun, text):
    """It is left open in the template; an empty one is as none."""
    assert rendered(chat(USER, ("assistant", begun), _debug_render_only=True)).endswith("<|im_end|>\n" + text)
    assert not chat(USER, ("assistant", begun)).json()["message"]["content"].startswith("My name")


@pytest.mark.parametrize("messages", [[], None])
@pytest.mark.parametrize("keep_alive, reason", [(None, "load"), ("1h", "load"), (0, "unload")])
def test_no_message_only_loads_or_unloads(post, messages, keep_alive, reason):
    """One plain object without figures, though a stream is the default."""
    answer = post("/api/chat", {"model": MODEL, "messages": messages, "keep_alive": keep_alive}).json()
    assert answer == {"model": MODEL, "created_at": answer["created_at"], "done": True, "done_reason": reason,
                      "message": {"role": "assistant", "content": ""}}


def test_thinking_can_be_turned_off_but_not_on(chat):
    """False is what the model does anyway."""
    assert chat(USER, think=False).json()["message"] == chat(USER).json()["message"]
    assert chat(USER, think="low").json() == {"error": f'"{MODEL}" does not support thinking'}


def test_a_long_chat_loses_its_oldest_messages(chat):
    """Those of the system and the last one stay; with `truncate` false the engine refuses the whole."""
    long = [("user", f"{number} " + "word " * 700) for number in range(9)]
    text = rendered(chat(SYSTEM, *long, USER, _debug_render_only=True))
    assert SYSTEM[1] in text and USER[1] in text
    assert ["user\n%d " % number in text for number in range(9)] == [False] * 4 + [True] * 5
    refused = chat(SYSTEM, *long, USER, truncate=False)
    error = json.loads(refused.json()["error"])["error"]
    assert (refused.status_code, error["type"], error["n_ctx"]) == (400, "exceed_context_size_error", 4096)


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_are_those_of_the_answers_tokens(chat, stream):
    """Their tokens join to the text; a greedy one is its own best alternative; other requests get none."""
    parts = records(chat(USER, logprobs=True, top_logprobs=3, stream=stream))
    entries = [entry for part in parts for entry in part.get("logprobs", [])]
    assert "".join(entry["token"] for entry in entries) == "".join(part["message"]["content"] for part in parts)
    assert b"".join(bytes(entry["bytes"]) for entry in entries).decode() == "".join(e["token"] for e in entries)
    for entry in entries:
        best = entry["top_logprobs"]
        assert len(best) == 3 and best[0] == {key: entry[key] for key in ("token", "logprob", "bytes")}
        assert sum(math.exp(other["logprob"]) for other in best) <= 1.0001
    assert "logprobs" not in chat(USER).json()
    assert "top_logprobs" not in chat(USER, logprobs=True).json()["logprobs"][0]


@pytest.mark.parametrize("form", ["json", SCHEMA])
def test_json_can_be_asked_for(chat, form):
    """The grammar binds the first token already."""
    text = chat(("user", "Name a city."), format=form, options={"num_predict": 40}).json()["message"]["content"]
    assert text.startswith("{")
    if form is SCHEMA:
        assert json.loads(text)["city"] in ("Paris", "Rome")


@pytest.mark.parametrize("schema", [{"type": "nope"}, {"enum": []}, {"$ref": "#/nowhere"},
                                    {"allOf": [{"type": "string"}, {"type": "integer"}]}])
@pytest.mark.parametrize("stream", [False, True])
def test_a_schema_that_cannot_bind_is_refused(chat, schema, stream):
    """The engine alone would answer as if there were none."""
    refused = chat(USER, format=schema, stream=stream, options={"stop": ["X"], "presence_penalty": 1e30})
    assert refused.status_code == 400
    assert json.loads(refused.json()["error"])["error"]["message"].endswith("failed to parse grammar")


FIELD = "json: cannot unmarshal {} into Go struct field ChatRequest.{} of type {}"
CHOICE = '"high", "medium", "low", "max", true, or false'


@pytest.mark.parametrize("fields, status, error", [
    ({"model": ""}, 400, "model is required"),
    ({"model": "llama3"}, 404, "model 'llama3' not found"),
    ({"messages": "Hi"}, 400, FIELD.format("string", "messages", "[]api.Message")),
    ({"messages": [5]}, 400, FIELD.format("number", "messages", "api.Message")),
    ({"messages": [{"content": [{"type": "text"}]}]}, 400, FIELD.format("array", "messages.content", "string")),
    ({"tools": {}}, 400, FIELD.format("object", "tools", "api.Tools")),
    ({"tools": [{"type": "function"}]}, 400, f"registry.ollama.ai/library/{MODEL} does not support tools"),
    ({"think": True}, 400, f'"{MODEL}" does not support thinking'),
    ({"think": "deep"}, 400, f'invalid think value: "deep" (must be {CHOICE})'),
    ({"think": 1}, 400, f"think must be a boolean or string ({CHOICE})"),
    ({"logprobs": 1}, 400, FIELD.format("number", "logprobs", "bool")),
    ({"top_logprobs": 21}, 400, "top_logprobs must be between 0 and 20"),
    ({"top_logprobs": 1.5}, 400, FIELD.format("number 1.5", "top_logprobs", "int")),
    ({"options": {"stop": "x"}}, 500, 'option "stop" must be of type array'),
    ({"format": "xml"}, 500, 'invalid format: "xml"; expected "json" or a valid JSON Schema object')])
def test_bad_chats(chat, fields, status, error):
    """Statuses and texts are Ollama's."""
    refused = chat(USER, **fields)
    assert (refused.status_code, refused.json()) == (status, {"error": error})


@pytest.mark.parametrize("messages, reason", [
    ([{"role": "user", "content": "What is it?", "images": ["aGVsbG8="]}], "does not support multimodal"),
    ([{"role": "assistant", "content": "a"}, {"role": "assistant", "content": "b"}], "2 or more assistant messages")])
def test_the_engine_has_a_say(chat, messages, reason):
    """Its refusals arrive as its own JSON in a string."""
    refused = chat(messages=messages)
    assert refused.status_code == 400
    assert reason in json.loads(refused.json()["error"])["error"]["message"]
