"""Requests to OpenAI's API become calls of Ollama: each field honoured, refused by its path, or ignored."""

import base64
import json

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_api.api.openai_errors import FieldError, NotSupported, error_object, refusal
from llama_api.api.openai_requests import CHAT_FIELDS, COMPLETION_FIELDS, OpenAIRequests
from llama_api.core import Models
from llama_api.errors import LlamaApiError, ModelNotServed, OllamaRefused, OllamaUnavailable
from llama_api.faults import fault_of
from llama_api.model_call import CHAT, GENERATE

ALL = ("completion", "tools", "vision", "thinking", "insert")
HI = [{"role": "user", "content": "Hi"}]
OPTIONS = {"temperature": 1.0, "top_p": 1.0, "frequency_penalty": 0.0, "presence_penalty": 0.0}
PNG = base64.b64encode(b"\x89PNG not really").decode()
IMAGE = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}", "detail": "low"}}
PARAMETERS = {"type": "object", "required": ["city"], "properties": {"unit": {}, "city": {"type": "string"}}}
TOOL = {"type": "function", "function": {"name": "weather", "description": "Now", "parameters": PARAMETERS}}
CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo", "a": 1}'}}
ASKED = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "call_1", "content": "Rain"}
SCHEMA = {"type": "object", "properties": {"b": {"type": "string"}, "a": {"type": "integer"}}}
STRUCTURED = {"type": "json_schema", "json_schema": {"name": "n", "strict": True, "schema": SCHEMA}}
EFFORTS = {"none": False, "minimal": "low", "low": "low", "medium": "medium", "high": "high", "max": "max",
           "xhigh": "max", "ultra": "max"}
IGNORED = ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key",
           "prompt_cache_retention", "prompt_cache_options", "prediction")
REFUSED = ("functions", "function_call", "audio", "web_search_options", "moderation", "num_ctx", "keep_alive",
           "options", "think", "raw", "template")
SAMPLING = [
    {"temperature": 0, "top_p": 0.5, "seed": 3}, {"top_p": 0, "frequency_penalty": -2, "presence_penalty": 2},
    {"top_k": 5, "min_p": 0.1, "repeat_penalty": 1.1, "temperature": 2, "seed": 0}]


class PlayedFleet:
    """The part of a fleet that the models use."""

    def __init__(self, capabilities=ALL, digest="build-1"):
        self.capabilities, self.digest, self.looks, self.down = capabilities, digest, 0, False

    def inventory(self):
        return [] if self.down else [{"name": "llama3:8b", "digest": self.digest}]

    def stale_since(self, model, digest):
        return None if digest == self.digest or self.down else 1.0

    def show(self, model):
        self.looks += 1
        if self.down:
            raise OllamaUnavailable
        return {"capabilities": list(self.capabilities)}


def requests(capabilities=ALL, **options):
    return OpenAIRequests(Models(PlayedFleet(capabilities), "llama3:8b", ["other:1b"], [("gpt-4o-mini", "llama3:8b")]),
                          **options)


READER, PLAIN = requests(), requests(("completion",))


def chat(reader=READER, **fields):
    return reader.chat(json.dumps({"model": "llama3:8b", "messages": HI, **fields}).encode())


def completion(reader=READER, **fields):
    return reader.completion(json.dumps({"model": "llama3:8b", "prompt": "Hi", **fields}).encode())


# What is honoured

@pytest.mark.parametrize("fields, body, options", [
    ({}, {}, {}), ({"model": "LLAMA3:8B"}, {}, {}), ({"model": "gpt-4o-mini"}, {}, {}),
    ({"model": "other:1b"}, {"model": "other:1b"}, {}),
    ({"max_tokens": 7}, {}, {"num_predict": 7}), ({"max_completion_tokens": 7}, {}, {"num_predict": 7}),
    ({"max_tokens": 9, "max_completion_tokens": 7}, {}, {"num_predict": 7}),
    *((fields, {}, fields) for fields in SAMPLING),
    ({"stop": "x"}, {}, {"stop": ["x"]}), ({"stop": ["x", "y"]}, {}, {"stop": ["x", "y"]}), ({"stop": []}, {}, {}),
    ({"response_format": {"type": "text"}}, {}, {}),
    ({"response_format": {"type": "json_object"}}, {"format": "json"}, {}),
    ({"response_format": STRUCTURED}, {"format": SCHEMA}, {}), ({"tools": [TOOL]}, {"tools": [TOOL]}, {}),
    ({"tools": [TOOL], "tool_choice": "auto"}, {"tools": [TOOL]}, {}),
    ({"tools": [TOOL], "tool_choice": "none"}, {}, {}), ({"tools": []}, {}, {}),
    ({"tools": [{"type": "function", "function": {"name": "f", "strict": True}}]},
     {"tools": [{"type": "function", "function": {"name": "f"}}]}, {}),
    ({"logprobs": True}, {"logprobs": True}, {}), ({"logprobs": False}, {}, {}),
    ({"logprobs": True, "top_logprobs": 2}, {"logprobs": True, "top_logprobs": 2}, {}),
    ({"logprobs": True, "top_logprobs": 0}, {"logprobs": True}, {}),
    *(({"reasoning_effort": effort}, {"think": think}, {}) for effort, think in EFFORTS.items()),
    ({"reasoning": {"effort": "high"}, "reasoning_effort": "low"}, {"think": "high"}, {}),
    ({"reasoning": {}, "reasoning_effort": "low"}, {"think": "low"}, {}),
    ({"reasoning": {"effort": None}, "reasoning_effort": "none"}, {"think": False}, {})])
def test_a_chat_becomes_a_call(fields, body, options):
    """OpenAI's defaults are sent, and each field has its native place."""
    asked = chat(**fields)
    assert asked.call.endpoint == CHAT
    assert asked.call.body == {"model": "llama3:8b", "messages": HI, "truncate": False, **body, "options": {
        "num_predict": 8192, **OPTIONS, **options}}


@pytest.mark.parametrize("fields, body, options", [
    ({}, {}, {}), ({"prompt": ["Hi"]}, {}, {}), ({"max_tokens": 5, "stop": "x"}, {}, {"num_predict": 5, "stop": ["x"]}),
    *((fields, {}, fields) for fields in SAMPLING),
    ({"suffix": "end"}, {"suffix": "end"}, {}), ({"suffix": ""}, {}, {}), ({"echo": False, "best_of": 1}, {}, {}),
    ({"logprobs": 0}, {"logprobs": True}, {}), ({"logprobs": 3}, {"logprobs": True, "top_logprobs": 3}, {})])
def test_a_completion_becomes_a_call(fields, body, options):
    """It is /api/generate, of 16 tokens where the request names no number."""
    asked = completion(**fields)
    assert asked.call.endpoint == GENERATE
    assert asked.call.body == {"model": "llama3:8b", "prompt": "Hi", "truncate": False, **body, "options": {
        "num_predict": 16, **OPTIONS, **options}}


def test_the_operators_settings_go_with_every_call():
    """NUM_CTX is sent, and MAX_TOKENS_LIMIT is the default of a chat and the most of a completion."""
    reader = requests(max_tokens_limit=9, num_ctx=4096)
    for asked in (chat(reader), completion(reader)):
        assert (asked.call.options["num_predict"], asked.call.options["num_ctx"]) == (9, 4096)
    embedding, = requests(("embedding",), num_ctx=4096).embeddings(b'{"model": "llama3:8b", "input": "Hi"}').calls()
    assert embedding.body == {"model": "llama3:8b", "input": "Hi", "truncate": False, "options": {"num_ctx": 4096}}


@pytest.mark.parametrize("fields, form", [
    ({}, (False, False, False)), ({"stream": True}, (True, False, False)),
    ({"stream": True, "stream_options": {"include_usage": True, "include_obfuscation": 5}}, (True, True, False)),
    ({"stream": True, "stream_options": {"include_usage": None}}, (True, False, False)),
    ({"stream_options": "ignored"}, (False, False, False)), ({"parallel_tool_calls": False}, (False, False, True)),
    ({"parallel_tool_calls": True}, (False, False, False))])
def test_the_form_of_the_answer_is_no_part_of_the_call(fields, form):
    """stream, its usage and the number of tool calls shape the answer alone."""
    asked = chat(**fields)
    assert (asked.streamed, asked.usage, asked.one_call) == form
    assert asked.call.key == chat().call.key
    if "parallel_tool_calls" not in fields:
        asked = completion(**fields)
        assert (asked.streamed, asked.usage, asked.call.key) == (*form[:2], completion().call.key)


def user(*parts):
    return [{"role": "user", "content": list(parts)}]


@pytest.mark.parametrize("messages, native", [
    ([{"role": "developer", "content": "Be kind", "name": "x"}, *HI], [{"role": "system", "content": "Be kind"}, *HI]),
    (user({"type": "text", "text": "Hi", "cache_control": {}}), HI),
    (user({"type": "text", "text": "a"}, {"type": "text", "text": "b"}), [{"role": "user", "content": "a\n\nb"}]),
    (user({"type": "text", "text": "See"}, IMAGE), [{"role": "user", "content": "See", "images": [PNG]}]),
    *((user({"type": "image_url", "image_url": f"data:{kind};base64,{data}"}), [
        {"role": "user", "content": "", "images": [PNG]}]) for kind, data in (
            ("", PNG), ("image/png", f"{PNG[:8]}\r\n{PNG[8:]}\n"), ("image/jpeg", PNG), ("image/jpg", PNG),
            ("image/webp", PNG))),
    *(([{"role": role, "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}, *HI],
       [{"role": "system", "content": "a\n\nb"}, *HI]) for role in ("system", "developer")),
    ([*HI, {"role": "assistant"}, {"role": "assistant", "content": None}, {"role": "assistant", "content": []}],
     [*HI, *[{"role": "assistant", "content": ""}] * 3]),
    ([*HI, {"role": "assistant", "content": "a", "reasoning": "b", "refusal": None, "audio": {"id": "c"}}],
     [*HI, {"role": "assistant", "content": "a", "thinking": "b"}]),
    ([*HI, {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}], "reasoning_content": "b"}],
     [*HI, {"role": "assistant", "content": "no", "thinking": "b"}]),
    ([*HI, ASKED, RESULT, *HI], [
        *HI, {"role": "assistant", "content": "", "tool_calls": [
            {"id": "call_1", "function": {"name": "weather", "arguments": {"city": "Oslo", "a": 1}}}]},
        {"role": "tool", "content": "Rain", "tool_name": "weather", "tool_call_id": "call_1"}, *HI]),
    ([ASKED, {**RESULT, "name": "other", "content": [{"type": "text", "text": "Rain"}]}], [
        {"role": "assistant", "content": "", "tool_calls": [
            {"id": "call_1", "function": {"name": "weather", "arguments": {"city": "Oslo", "a": 1}}}]},
        {"role": "tool", "content": "Rain", "tool_name": "weather", "tool_call_id": "call_1"}]),
    ([*HI, {**ASKED, "tool_calls": [{"id": "1", "index": 0, "function": {"name": "f", "arguments": ""}}]}],
     [*HI, {"role": "assistant", "content": "", "tool_calls": [
         {"id": "1", "function": {"name": "f", "arguments": {}}}]}]),
    ([*HI, *HI], [*HI, *HI])])
def test_messages_become_native_ones(messages, native):
    """Roles, parts, images, tool calls and their results; what changes nothing is left out."""
    assert chat(messages=messages).call.body["messages"] == native


# What shares a key, and what never does

SAME = {"temperature": 1, "top_p": 1.0, "frequency_penalty": 0, "presence_penalty": 0.0, "n": 1, "logit_bias": {},
        "stop": [], "stream": True}


@pytest.mark.parametrize("ask, fields", [
    *((chat, {name: None}) for name in sorted({*CHAT_FIELDS, *REFUSED} - {"model", "messages"})),
    *((completion, {name: None}) for name in sorted({*COMPLETION_FIELDS, *REFUSED} - {"model", "prompt"})),
    *((ask, {name: value}) for ask in (chat, completion) for name in IGNORED
      for value in (None, 5, {"any": ["value"]})),
    *((ask, {name: value}) for ask in (chat, completion) for name, value in SAME.items())])
def test_a_field_that_says_nothing_makes_no_difference(ask, fields):
    """null, the default of a field, and what never changes an answer."""
    assert ask(**fields).call.key == ask().call.key


@pytest.mark.parametrize("one, other", [
    ({}, {"max_tokens": 8192, "modalities": ["text"], "verbosity": "medium", "tool_choice": "none"}),
    ({"messages": user({"type": "text", "text": "Hi"})},
     {"messages": [{"content": "Hi", "name": "Jo", "role": "user"}]}),
    ({"tools": [TOOL]}, {"tools": [{"function": {**TOOL["function"], "strict": True}, "type": "function"}]}),
    ({"messages": user(IMAGE)}, {"messages": user({"type": "image_url", "image_url": IMAGE["image_url"]["url"]})})])
def test_what_sends_the_same_shares_a_key(one, other):
    """Defaults and other spellings make no difference."""
    assert chat(**one).call.key == chat(**other).call.key


def test_what_sends_something_else_has_a_key_of_its_own():
    """The order of a schema's properties, of tools, of messages and of stops included."""
    turned = {**PARAMETERS, "properties": dict(reversed(PARAMETERS["properties"].items()))}
    other = {"type": "function", "function": {"name": "other"}}
    asked = [
        {}, {"model": "other:1b"}, {"max_tokens": 1}, {"temperature": 0.5}, {"seed": 1}, {"stop": ["a", "b"]},
        {"stop": ["b", "a"]}, {"tools": [TOOL]}, {"tools": [TOOL, other]}, {"tools": [other, TOOL]}, {"logprobs": True},
        {"tools": [{"type": "function", "function": {**TOOL["function"], "parameters": turned}}]},
        {"response_format": {"type": "json_object"}}, {"response_format": STRUCTURED}, {"reasoning_effort": "high"},
        {"reasoning_effort": "none"}, {"messages": HI + HI}, {"messages": user(IMAGE)},
        {"messages": [{"role": "system", "content": "Hi"}]},
        {"response_format": {"type": "json_schema", "json_schema": {
            "schema": {**SCHEMA, "properties": dict(reversed(SCHEMA["properties"].items()))}}}}]
    keys = [chat(**fields).call.key for fields in asked] + [completion().call.key, completion(max_tokens=8192).call.key]
    assert len(set(keys)) == len(keys)


CHOICES = st.fixed_dictionaries({}, optional={
    "max_tokens": st.sampled_from([None, 8192, 5]), "max_completion_tokens": st.sampled_from([None, 5]),
    "temperature": st.sampled_from([None, 1, 1.0, 0]), "top_p": st.sampled_from([1, 0.5]),
    "seed": st.sampled_from([0, 1]), "stop": st.sampled_from([[], "x", ["x"], ["x", "y"]]),
    "stream": st.booleans(), "user": st.text(max_size=2),
    "tools": st.sampled_from([[], [TOOL], [TOOL, TOOL]]), "tool_choice": st.sampled_from(["auto", "none"]),
    "response_format": st.sampled_from([{"type": "text"}, {"type": "json_object"}, STRUCTURED]),
    "reasoning_effort": st.sampled_from(list(EFFORTS)), "logprobs": st.booleans(),
    "model": st.sampled_from(["llama3:8b", "gpt-4o-mini", "other:1b"]),
    "messages": st.sampled_from([HI, user({"type": "text", "text": "Hi"}), user(IMAGE), [*HI, ASKED, RESULT]])})


@settings(max_examples=150)
@given(CHOICES, CHOICES)
def test_keys_are_equal_if_and_only_if_what_is_sent_is(one, other):
    """Byte for byte, whatever the two requests looked like."""
    first, second = chat(**one).call, chat(**other).call
    assert (first.key == second.key) is (orjson.dumps(dict(first.body)) == orjson.dumps(dict(second.body)))


# What is refused

MISSING, TYPE, VALUE = "missing_required_parameter", "invalid_type", "invalid_value"
UNKNOWN, UNSUPPORTED, PARAMETER = "unknown_parameter", "unsupported_value", "unsupported_parameter"


def message(**fields):
    return {"messages": [{"role": "user", "content": "Hi", **fields}]}


def called(**fields):
    return {"messages": [*HI, {**ASKED, "tool_calls": [{**CALL, **fields}]}]}


def function(**fields):
    return {"function": {"name": "f", "arguments": "{}", **fields}}


def tool(**fields):
    return {"tools": [TOOL, {"type": "function", "function": {"name": "f", **fields}}]}


CALLED, PART = "messages[1].tool_calls[0]", "messages[0].content[0]"
BOTH = [
    ({"model": None}, "model", TYPE), ({"model": 5}, "model", TYPE), ({"temperature": "1"}, "temperature", TYPE),
    ({"temperature": True}, "temperature", TYPE), ({"temperature": 2.1}, "temperature", VALUE),
    ({"temperature": -0.1}, "temperature", VALUE), ({"temperature": 10 ** 400}, "temperature", VALUE),
    ({"top_p": 1.1}, "top_p", VALUE), ({"top_p": -0.1}, "top_p", VALUE), ({"min_p": 2}, "min_p", VALUE),
    ({"repeat_penalty": -1}, "repeat_penalty", VALUE), ({"frequency_penalty": 2.1}, "frequency_penalty", VALUE),
    ({"presence_penalty": -2.1}, "presence_penalty", VALUE), ({"top_k": 0}, "top_k", VALUE),
    ({"top_k": 1001}, "top_k", VALUE), ({"seed": -1}, "seed", VALUE), ({"seed": 2 ** 31}, "seed", VALUE),
    ({"seed": 1.5}, "seed", TYPE), ({"max_tokens": 0}, "max_tokens", VALUE),
    ({"max_tokens": 8193}, "max_tokens", VALUE), ({"max_tokens": "5"}, "max_tokens", TYPE),
    ({"stop": 5}, "stop", TYPE), ({"stop": ""}, "stop", VALUE),
    ({"stop": ["x"] * 17}, "stop", VALUE), ({"stop": ["x", ""]}, "stop[1]", VALUE),
    ({"stop": ["x", 5]}, "stop[1]", TYPE), ({"stop": ["\ud800"]}, "stop[0]", VALUE), ({"n": 2}, "n", UNSUPPORTED),
    ({"n": 0}, "n", VALUE),
    ({"n": "1"}, "n", TYPE), ({"logit_bias": {"50256": -100}}, "logit_bias", UNSUPPORTED),
    ({"logit_bias": []}, "logit_bias", TYPE), ({"stream": "true"}, "stream", TYPE), ({"stream": 1}, "stream", TYPE),
    ({"stream": True, "stream_options": []}, "stream_options", TYPE),
    ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage", TYPE),
    ({"colour": None}, "colour", UNKNOWN), ({"Temperature": 1}, "Temperature", UNKNOWN), ({"\ud800": 1}, "?", UNKNOWN),
    *(({name: 1}, name, PARAMETER) for name in REFUSED)]
CHATS = [
    ({"messages": None}, "messages", TYPE), ({"messages": "Hi"}, "messages", TYPE),
    ({"messages": []}, "messages", VALUE), ({"messages": ["Hi"]}, "messages[0]", TYPE),
    ({"messages": [{"content": "Hi"}]}, "messages[0].role", MISSING),
    (message(role=None), "messages[0].role", TYPE), (message(role="function"), "messages[0].role", VALUE),
    (message(role="User"), "messages[0].role", VALUE),
    ({"messages": [{"role": "user"}]}, "messages[0].content", MISSING),
    (message(content=None), "messages[0].content", TYPE), (message(content={}), "messages[0].content", TYPE),
    (message(content=[]), "messages[0].content", VALUE), (message(content="\udfff"), "messages[0].content", VALUE),
    ({"messages": [*HI, {"role": "system", "content": None}]}, "messages[1].content", TYPE),
    (message(content=["Hi"]), PART, TYPE), (message(content=[{}]), f"{PART}.type", MISSING),
    (message(content=[{"type": "text"}]), f"{PART}.text", MISSING),
    (message(content=[{"type": "text", "text": None}]), f"{PART}.text", TYPE),
    (message(content=[{"type": "input_audio"}]), f"{PART}.type", UNSUPPORTED),
    (message(content=[{"type": "file"}]), f"{PART}.type", UNSUPPORTED),
    (message(content=[{"type": "refusal", "refusal": "x"}]), f"{PART}.type", UNSUPPORTED),
    (message(role="system", content=[IMAGE]), f"{PART}.type", UNSUPPORTED),
    (message(content=[{"type": "image_url"}]), f"{PART}.image_url", MISSING),
    (message(content=[{"type": "image_url", "image_url": {}}]), f"{PART}.image_url.url", MISSING),
    *((message(content=[{"type": "image_url", "image_url": {"url": url}}]), f"{PART}.image_url", VALUE) for url in (
        "https://example.com/x.png", "http://127.0.0.1/", "file:///etc/passwd", "data:image/png;base64,", "",
        "data:image/png;base64,%%%", "data:image/svg+xml;base64,AAAA", "data:image/png,AAAA",
        "data:image/png;base64,A")),
    (message(role="tool", tool_call_id="call_1"), "messages[0].tool_call_id", VALUE),
    (message(role="tool"), "messages[0].tool_call_id", MISSING),
    ({"messages": [*HI, ASKED, {**RESULT, "tool_call_id": "call_2"}]}, "messages[2].tool_call_id", VALUE),
    ({"messages": [*HI, ASKED, {**RESULT, "content": None}]}, "messages[2].content", TYPE),
    ({"messages": [*HI, {**ASKED, "tool_calls": {}}]}, "messages[1].tool_calls", TYPE),
    ({"messages": [*HI, {**ASKED, "function_call": {}}]}, "messages[1].function_call", PARAMETER),
    ({"messages": [*HI, {**ASKED, "reasoning": ["x"]}]}, "messages[1].reasoning", TYPE),
    (called(type="custom"), f"{CALLED}.type", UNSUPPORTED), (called(id=5), f"{CALLED}.id", TYPE),
    (called(id=""), f"{CALLED}.id", VALUE), (called(function=None), f"{CALLED}.function", TYPE),
    (called(**function(name="")), f"{CALLED}.function.name", VALUE),
    (called(**function(arguments={"a": 1})), f"{CALLED}.function.arguments", TYPE),
    *((called(**function(arguments=text)), f"{CALLED}.function.arguments", VALUE) for text in (
        "{", "[]", "5", "\ud800", r'{"a": "\ud800"}', '{"a": 1e999}', '{"a": %d}' % 10 ** 30, '{"a": NaN}',
        '{"a":' * 200 + "1" + "}" * 200, '{"a":' * 90000)),
    ({"tools": {}}, "tools", TYPE), ({"tools": [5]}, "tools[0]", TYPE), ({"tools": [{}]}, "tools[0].type", MISSING),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type", UNSUPPORTED),
    ({"tools": [{"type": "function"}]}, "tools[0].function", MISSING),
    (tool(name=None), "tools[1].function.name", TYPE), (tool(name=""), "tools[1].function.name", VALUE),
    (tool(description=5), "tools[1].function.description", TYPE),
    (tool(parameters=[]), "tools[1].function.parameters", TYPE),
    (tool(parameters={"a": [{"b": "\ud800"}]}), "tools[1].function.parameters.a[0].b", VALUE),
    (tool(parameters={"a": 2 ** 64}), "tools[1].function.parameters.a", VALUE),
    (tool(parameters={"\ud800": 1}), "tools[1].function.parameters", VALUE),
    ({"tool_choice": "required"}, "tool_choice", UNSUPPORTED), ({"tool_choice": "any"}, "tool_choice", VALUE),
    ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice", UNSUPPORTED),
    ({"tool_choice": 5}, "tool_choice", VALUE), ({"parallel_tool_calls": "no"}, "parallel_tool_calls", TYPE),
    ({"response_format": "json"}, "response_format", TYPE), ({"response_format": {}}, "response_format.type", MISSING),
    ({"response_format": {"type": "xml"}}, "response_format.type", VALUE),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", MISSING),
    ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format.json_schema.schema", MISSING),
    ({"response_format": {"type": "json_schema", "json_schema": {"schema": True}}},
     "response_format.json_schema.schema", TYPE),
    ({"logprobs": 1}, "logprobs", TYPE), ({"top_logprobs": 2}, "top_logprobs", VALUE),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", VALUE),
    ({"reasoning": {"effort": "high"}, "reasoning_effort": "huge"}, "reasoning_effort", VALUE),
    ({"reasoning_effort": "huge"}, "reasoning_effort", VALUE), ({"reasoning_effort": 5}, "reasoning_effort", TYPE),
    ({"reasoning": "high"}, "reasoning", TYPE), ({"reasoning": {"effort": "x"}}, "reasoning.effort", VALUE),
    ({"reasoning": {"max_tokens": 5}}, "reasoning.max_tokens", PARAMETER),
    ({"modalities": ["text", "audio"]}, "modalities", UNSUPPORTED), ({"verbosity": "low"}, "verbosity", UNSUPPORTED),
    ({"max_completion_tokens": 8193}, "max_completion_tokens", VALUE), ({"prompt": "Hi"}, "prompt", UNKNOWN),
    ({"suffix": "x"}, "suffix", UNKNOWN)]
COMPLETIONS = [
    ({"prompt": None}, "prompt", TYPE), ({"prompt": ""}, "prompt", VALUE), ({"prompt": [""]}, "prompt", VALUE),
    ({"prompt": []}, "prompt", UNSUPPORTED), ({"prompt": ["a", "b"]}, "prompt", UNSUPPORTED),
    ({"prompt": [1, 2]}, "prompt", UNSUPPORTED), ({"prompt": [[1]]}, "prompt", UNSUPPORTED),
    ({"prompt": 5}, "prompt", TYPE), ({"prompt": "\ud800"}, "prompt", VALUE), ({"suffix": 5}, "suffix", TYPE),
    ({"logprobs": 6}, "logprobs", VALUE),
    ({"logprobs": True}, "logprobs", TYPE), ({"echo": True}, "echo", UNSUPPORTED),
    ({"best_of": 2}, "best_of", UNSUPPORTED), ({"messages": HI}, "messages", UNKNOWN),
    ({"response_format": {"type": "text"}}, "response_format", UNKNOWN)]


@pytest.mark.parametrize("ask, fields, param, code", [
    *((ask, *row) for ask in (chat, completion) for row in BOTH), *((chat, *row) for row in CHATS),
    *((completion, *row) for row in COMPLETIONS)])
def test_a_wrong_field_is_refused_by_its_path(ask, fields, param, code):
    """One fault is reported, with OpenAI's code and its path, which the message contains as well."""
    with pytest.raises(FieldError) as raised:
        ask(**fields)
    error = raised.value
    assert (error.param, error.code) == (param, code)
    told = error_object(fault_of(error), error)["error"]
    assert f"`{param}`" in told["message"] and orjson.dumps(told)


@pytest.mark.parametrize("ask, fields", [(chat, CHAT_FIELDS), (completion, COMPLETION_FIELDS)])
def test_what_is_required_is_asked_for(ask, fields):
    """A model, and messages or a prompt."""
    for name in fields & {"model", "messages", "prompt"}:
        reader, body = READER, {"model": "llama3:8b", "messages": HI, "prompt": "Hi"}
        body = {field: value for field, value in body.items() if field in fields and field != name}
        with pytest.raises(FieldError) as raised:
            (reader.chat if ask is chat else reader.completion)(json.dumps(body).encode())
        assert (raised.value.param, raised.value.code) == (name, MISSING)


def test_the_limit_of_tokens_is_stated():
    """A caller learns how many it may ask for."""
    with pytest.raises(FieldError, match="from 1 to 8192"):
        chat(max_tokens=9000)


def test_another_model_is_not_served():
    """The error names those that are."""
    for ask in (chat, completion):
        with pytest.raises(ModelNotServed, match="gpt-4.*llama3:8b"):
            ask(model="gpt-4")


# What the model must be able to do

@pytest.mark.parametrize("ask, fields, param, ability", [
    (chat, {"tools": [TOOL]}, "tools", "tools"), (chat, {"messages": [*HI, ASKED]}, "messages[1].tool_calls", "tools"),
    (chat, {"messages": user(IMAGE)}, f"{PART}.image_url", "vision"),
    (chat, {"reasoning_effort": "low"}, "reasoning_effort", "thinking"),
    (chat, {"reasoning": {"effort": "max"}}, "reasoning.effort", "thinking"),
    (completion, {"suffix": "x"}, "suffix", "insert")])
def test_what_the_model_cannot_do_is_refused(ask, fields, param, ability):
    """The words are Ollama's, for clients look for them; a model that can is asked."""
    with pytest.raises(NotSupported, match=f"does not support {ability}") as raised:
        ask(PLAIN, **fields)
    assert raised.value.param == param
    assert ask(READER, **fields).needs == {ability: param}


def test_no_thinking_is_nothing_to_ask_of_a_model_that_does_not_think():
    """It is the call that names no effort; to a model that thinks it is one of its own."""
    assert chat(PLAIN, reasoning_effort="none").call.key == chat(PLAIN).call.key
    assert chat(READER, reasoning_effort="none").call.key != chat(READER).call.key


def test_one_look_a_build():
    """The capabilities of a model are remembered until its build changes, also while Ollama is down."""
    fleet = PlayedFleet()
    reader = OpenAIRequests(Models(fleet, "llama3:8b"))
    for looks, change in ((1, {}), (1, {}), (2, {"digest": "build-2"}), (2, {"down": True})):
        vars(fleet).update(change)
        chat(reader, tools=[TOOL])
        assert fleet.looks == looks


def test_an_unknown_ability_is_left_to_ollama():
    """While Ollama cannot be asked a stored answer may still be there."""
    fleet = PlayedFleet()
    fleet.down = True
    assert chat(OpenAIRequests(Models(fleet, "llama3:8b")), tools=[TOOL]).call.body["tools"]


# Refusals of Ollama

@pytest.mark.parametrize("fields, text, param, words", [
    ({"tools": [TOOL]}, "registry.ollama.ai/library/llama3:8b does not support tools", "tools",
     "does not support tools"),
    ({"reasoning_effort": "low"}, '"llama3:8b" does not support thinking', "reasoning_effort",
     "does not support thinking"),
    ({"reasoning": {"effort": "max"}}, 'think value "max" is not supported for this model', "reasoning.effort",
     "effort"),
    ({}, '"llama3:8b" does not support chat', "model", "does not support chat"),
    ({"tools": [TOOL]}, "json: cannot unmarshal bool into Go struct field", "tools", "schema"),
    ({"tools": [TOOL], "response_format": STRUCTURED}, '{"error":{"message":"failed to parse grammar"}}',
     "response_format", "schema"),
    ({"response_format": STRUCTURED}, "boom", "response_format", "schema"),
    ({"messages": user({"type": "text", "text": "x"}, IMAGE)}, "Failed to load image",
     "messages[0].content[1].image_url", "image"), ({"messages": user(IMAGE)}, "boom", f"{PART}.image_url", "image")])
def test_a_refusal_of_ollama_is_told_of_the_field(fields, text, param, words):
    """Without Ollama's own words, which may hold paths."""
    asked = chat(**fields)
    error = refusal(OllamaRefused(400, text), asked.call, asked.needs)
    assert error.param == param and words in str(error) and "boom" not in str(error) and "registry" not in str(error)


@pytest.mark.parametrize("error", [
    OllamaRefused(400, "boom"), OllamaRefused(500, "does not support tools"), ValueError()])
def test_a_failure_that_no_field_caused_stays_what_it_is(error):
    """A plain chat has nothing to blame."""
    assert refusal(error, chat().call, {}) is None


# Whatever comes

LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(
    ["user", "tool", "text", "image_url", "function", "json_schema", "\ud800", 10 ** 30, "{}", "data:;base64,AAAA"])
NAMES = st.text(max_size=5) | st.sampled_from(
    [*CHAT_FIELDS, *COMPLETION_FIELDS, *REFUSED, "role", "content", "type", "text", "image_url", "url", "tool_calls",
     "id", "function", "name", "arguments", "parameters", "tool_call_id", "effort", "schema", "json_schema",
     "include_usage"])
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
                      max_leaves=12)
BODIES = st.dictionaries(NAMES, VALUES, max_size=4).map(lambda found: {"model": "llama3:8b", **found})


@settings(max_examples=250)
@given(body=BODIES, messages=st.none() | st.lists(st.dictionaries(NAMES, VALUES, max_size=4), max_size=3))
def test_any_json_is_a_call_or_a_refusal(body, messages):
    """No other error is raised; refusals and calls can be encoded."""
    if messages is not None:
        body["messages"] = messages
    text = json.dumps(body).encode()
    for read in (READER.chat, READER.completion):
        try:
            orjson.dumps(dict(read(text).call.body))
        except LlamaApiError as error:
            fault = fault_of(error)
            assert fault.status in (400, 404, 422) and orjson.dumps(error_object(fault, error))
