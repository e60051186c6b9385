"""Ollama's API as values: what each field becomes, what is refused and how, and the records of an answer."""

import json
from array import array
from datetime import datetime, timedelta

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_api.answer import Answer, Completion, Piece
from llama_api.api.ollama_grammar import (CHAT_FIELDS, EMBED_FIELDS, GENERATE_FIELDS, OllamaGrammar, OllamaRequests,
                                          status_and_text, tags_of)
from llama_api.api.parsed_bodies import ParsedBodies
from llama_api.cache import Entry
from llama_api.core import Models, Reply
from llama_api.errors import (InvalidRequest, MalformedJSON, ModelNotFound, ModelNotServed, OllamaRefused,
                              OllamaUnavailable, PromptTooLong, QueueFull)
from llama_api.faults import fault_of
from llama_api.model_call import CHAT, EMBED, EMBEDDINGS, GENERATE, ModelCall
from llama_api.ollama import completion_of, piece_of
from llama_api.waiting import Wait
from tests.support.fakes import call

MODEL = "llama3:8b"
LIMIT = 300
MESSAGES = [{"role": "user", "content": "Hi"}]
TOOL = {"type": "function", "function": {"name": "weather", "description": "Tells it.", "parameters": {
    "type": "object", "required": ["city"], "properties": {"city": {"type": "string"}}}}}
CALL = {"function": {"name": "weather", "arguments": {"city": "Oslo"}}}


class Shown:
    """A fleet with facts only: one model, trained for 8,192 tokens, and its window while it is loaded."""

    def __init__(self, window=None):
        self.loaded_with = window

    def inventory(self):
        return [{"name": MODEL, "digest": "d1"}]

    def stale_since(self, model, digest):
        return None

    def window(self, model):
        return self.loaded_with

    def show(self, model):
        return {"model_info": {"general.architecture": "llama", "llama.context_length": 8192}}


MODELS = Models(Shown(), MODEL, ["other:1b"], [("gpt-4o-mini", MODEL)])
REQUESTS = OllamaRequests(MODELS, LIMIT, None)


def generate(requests=REQUESTS, **fields):
    """The call for a body of /api/generate."""
    return requests.generate(json.dumps({"model": MODEL, "prompt": "Hi", **fields}).encode())


def chat(**fields):
    """The call for a body of /api/chat."""
    return REQUESTS.chat(json.dumps({"model": MODEL, "messages": MESSAGES, **fields}).encode())


def told(read, body):
    """The status and text that refuse a body."""
    with pytest.raises((InvalidRequest, MalformedJSON, ModelNotServed)) as caught:
        read(body if isinstance(body, bytes) else json.dumps(body).encode())
    return status_and_text(fault_of(caught.value), caught.value)


# From a request to a call

def test_a_prompt_alone_is_sent_with_a_bound():
    """Streamed, with nothing added but the most tokens that the operator allows."""
    asked = generate()
    assert (asked.endpoint, asked.name, asked.model, asked.streamed) == (GENERATE, MODEL, MODEL, True)
    assert asked.call.body == {"model": MODEL, "prompt": "Hi", "options": {"num_predict": LIMIT}}


BOTH = [
    ("format", "json", ...), ("format", {"type": "object"}, ...), ("format", "", None), ("format", None, None),
    ("think", True, ...), ("think", False, ...), ("think", "high", ...), ("think", None, None), ("think", "", None),
    ("truncate", False, ...), ("truncate", True, ...), ("shift", False, ...), ("shift", None, None),
    ("logprobs", True, ...), ("logprobs", False, None), ("top_logprobs", 5, ...), ("top_logprobs", 0, None),
    ("_debug_render_only", True, ...), ("_debug_render_only", False, None), ("no_such_field", 1, None),
    *(("keep_alive", given, None) for given in ("5m", "1h30m", "1.5s", "-1m", "0", "", -1, 0, 0.5, None))]
OF_GENERATE = [
    ("system", "Be kind.", ...), ("system", "", None), ("template", "{{ .Prompt }}", ...), ("template", "", None),
    ("suffix", "end", ...), ("suffix", "", None), ("raw", True, ...), ("raw", False, None),
    ("images", ["aGk="], ...), ("images", [], None), ("context", [1, 2], ...), ("context", [], None),
    ("context", [1.0], [1]), ("system", "lone \ud83d", "lone \ufffd"), ("system", "whole \U0001f600", ...)]


@pytest.mark.parametrize("ask, field, value, sent", [
    *((ask, *row) for ask in (generate, chat) for row in BOTH), *((generate, *row) for row in OF_GENERATE)])
def test_a_field_is_sent_as_it_is_given(ask, field, value, sent):
    """Values that Go treats as absent are absent, and settings of the operator are not sent."""
    body = ask(**{field: value}).call.body
    assert body.get(field) == (value if sent is ... else sent)
    assert body.keys() - {field} == ask().call.body.keys()


@pytest.mark.parametrize("field, value, sent", [
    ("tools", [TOOL], ...), ("tools", [], None), ("format", {"b": 1, "a": 2}, ...),
    ("messages", [{"role": "SYSTEM", "content": "x"}], [{"role": "system", "content": "x"}]),
    ("messages", [{"role": "user"}], [{"role": "user", "content": ""}]),
    ("messages", [{"Role": "user", "CONTENT": "x", "name": "Jo", "thinking": "", "images": None}],
     [{"role": "user", "content": "x"}]),
    ("messages", [{"content": "x", "role": "tool", "tool_name": "weather", "tool_call_id": "call_1"}],
     [{"role": "tool", "content": "x", "tool_name": "weather", "tool_call_id": "call_1"}]),
    ("messages", [{"role": "user", "content": "x", "images": ["aGk="]}], ...),
    *(("messages", [{"role": "assistant", "content": "", "thinking": "Hm", "tool_calls": [made]}], ...) for made in (
        CALL, {"id": "call_1", "type": "function", **CALL}, {"function": {"name": "now", "arguments": None}})),
    ("tools", [{"type": "function", "function": {"name": "now", "parameters": None}}], ...)])
def test_a_field_of_chat_is_sent_as_it_is_given(field, value, sent):
    """Messages lose what Ollama does not know, tools and schemas keep the order inside them."""
    body = chat(**{field: value}).call.body
    assert json.dumps(body.get(field)) == json.dumps(value if sent is ... else sent)


SENT = {"seed": 7, "top_k": 5, "num_keep": 3, "repeat_last_n": 8, "mirostat": 1, "temperature": 0.5, "top_p": 0.5,
        "min_p": 0.1, "typical_p": 0.5, "tfs_z": 0.5, "repeat_penalty": 1.5, "presence_penalty": 0.5,
        "frequency_penalty": 0.5, "mirostat_tau": 0.5, "mirostat_eta": 0.5, "penalize_newline": True, "stop": ["x", ""]}


@pytest.mark.parametrize("option", SENT)
def test_an_option_is_sent_as_it_is_given(option):
    """Each is part of the call, as is the limit of tokens."""
    assert generate(options={option: SENT[option]}).call.options == {option: SENT[option], "num_predict": LIMIT}


@pytest.mark.parametrize("option, value", [
    *dict.fromkeys(("num_ctx", "num_batch", "num_gpu", "main_gpu", "num_thread", "draft_num_predict"), 2).items(),
    *dict.fromkeys(("use_mmap", "use_mlock", "numa", "low_vram", "f16_kv", "logits_all", "vocab_only"), True).items(),
    ("rope_frequency_base", 2.5), ("rope_frequency_scale", 0.5), ("colour", "red"), ("num_Keep", 5)])
def test_an_option_of_the_load_or_an_unknown_one_is_ignored(option, value):
    """It changes neither what is sent nor the key."""
    for ask in (generate, chat):
        assert ask(options={option: value}).call == ask().call


@pytest.mark.parametrize("given, sent", [
    ({"stop": []}, {}), ({"stop": None}, {}), ({"top_k": 40.9}, {"top_k": 40}), ({"temperature": 1}, {
        "temperature": 1.0}), ({"num_predict": 5}, {"num_predict": 5}), ({"num_predict": -1}, {}),
    ({"num_predict": -2}, {}), ({"num_predict": 0}, {}), ({"num_predict": LIMIT}, {}), ({"num_predict": None}, {}),
    ({"num_ctx": 8192}, {}), ({"num_ctx": 0}, {}), ({"num_ctx": -1}, {}), ({"Seed": 5}, {})])
def test_options_take_effect_as_with_ollama(given, sent):
    """No number of tokens, or a negative one, is the limit; a fraction of an integer is cut off; case matters here."""
    assert generate(options=given).call.options == {"num_predict": LIMIT} | sent


def test_the_operators_window_is_sent_and_part_of_the_key():
    """The same holds for POST /generate."""
    requests = OllamaRequests(MODELS, LIMIT, 2048)
    assert generate(requests).call.options == {"num_predict": LIMIT, "num_ctx": 2048}
    assert generate(requests, options={"num_ctx": 2048}).call.key == generate(requests).call.key
    body = json.dumps({"model": MODEL, "input": "a", "prompt": "a"}).encode()
    for embedding in (*requests.embed(body)[1], requests.embeddings(body)):
        assert embedding.options == {"num_ctx": 2048}


@pytest.mark.parametrize("num_ctx, loaded, window", [(2048, None, 2048), (None, None, 8192), (None, 4096, 4096)])
def test_a_window_above_the_one_in_force_is_refused(num_ctx, loaded, window):
    """NUM_CTX is in force, else that of the loaded model, else the longest that the model can have."""
    requests = OllamaRequests(Models(Shown(loaded), MODEL), LIMIT, num_ctx)
    assert generate(requests, options={"num_ctx": window})
    status, text = told(requests.generate, {"model": MODEL, "prompt": "Hi", "options": {"num_ctx": window + 1}})
    assert status == 400 and f"{window} tokens" in text and f"num_ctx {window + 1}" in text


def test_the_window_in_force_is_asked_anew_for_a_remembered_body():
    """It may have become smaller since."""
    fleet, parsed_bodies = Shown(), ParsedBodies()
    requests = OllamaRequests(Models(fleet, MODEL), LIMIT, None)
    body = json.dumps({"model": MODEL, "prompt": "Hi", "options": {"num_ctx": 8192}}).encode()
    first = requests.generate(body, parsed_bodies.parse)
    assert requests.generate(body, parsed_bodies.parse) is first
    fleet.loaded_with = 4096
    assert told(lambda text: requests.generate(text, parsed_bodies.parse), body)[0] == 400


def test_a_request_of_another_door_is_the_same_call():
    """A call has the same key here as at POST /generate."""
    options = {"num_predict": 100, "temperature": 0.7}
    assert generate(options=options, truncate=False).call == call("Hi")
    assert chat(options=options).call == ModelCall.of(CHAT, MODEL, options, messages=MESSAGES)


@pytest.mark.parametrize("name", ["llama3:8b", "LLAMA3:8b", "library/llama3:8b", " llama3:8b ", "gpt-4o-mini",
                                  "registry.ollama.ai/library/llama3:8b", "GPT-4o-mini:latest"])
def test_a_model_has_many_names_and_one_key(name):
    """The call has the configured one, the answer the one that was sent."""
    asked = generate(model=name)
    assert (asked.name, asked.model, asked.call.key) == (name, MODEL, generate().call.key)


@pytest.mark.parametrize("prompt", [{"prompt": ""}, {"prompt": None}, {}])
def test_an_empty_prompt_only_loads(prompt):
    """The answer is not streamed, even if a stream is requested."""
    asked = REQUESTS.generate(json.dumps({"model": "gpt-4o-mini", "keep_alive": 0, **prompt}).encode())
    assert (asked.call, asked.model) == (None, MODEL)


@pytest.mark.parametrize("messages", [{"messages": []}, {"messages": None}, {}])
def test_a_chat_without_messages_only_loads(messages):
    """The same holds for an empty prompt."""
    assert REQUESTS.chat(json.dumps({"model": MODEL, **messages}).encode()).call is None


@pytest.mark.parametrize("stream, debug, streamed", [
    (True, None, True), (False, None, False), (None, None, True), (True, True, False)])
def test_stream_is_true_unless_it_is_refused(stream, debug, streamed):
    """A prompt that is only rendered is one object, as with Ollama."""
    assert generate(stream=stream, _debug_render_only=debug).streamed is streamed


@pytest.mark.parametrize("body", [
    b'{"MODEL": "llama3:8b", "Prompt": "Hi"}', b' {"model": "llama3:8b", "prompt": "Hi"} and {more',
    b'{"prompt": "Ho", "model": "llama3:8b", "prompt": "Hi"}', b'{"model": "llama3:8b", "prompt": "Hi", "Model": null}',
    b'{"model": "llama3:8b", "prompt": "Hi", "options": null, "format": null, "x": {"y": [1e3]}}'])
def test_a_body_is_read_as_go_reads_it(body):
    """Names in any case, the last one counts, null counts for nothing, and what follows the object neither."""
    assert REQUESTS.generate(body) == generate()


# What is refused

@pytest.mark.parametrize("body, text", [
    (b"", "missing request body"), (b" \n", "missing request body"), (b'{"model": "x', "unexpected EOF"),
    (b'{"model":', "unexpected EOF"), (b"{x", "invalid character 'x'"), (b"NaN", "invalid character 'N'"),
    (b'{"model": 1e999}', "cannot unmarshal number"), (b"[]", "cannot unmarshal array"),
    (b'"x"', "cannot unmarshal string"), (b'{"x": ' + b"[" * 5000 + b"]" * 5000 + b"}", "exceeded max depth"),
    (b'{"x": ' + b"[" * 200 + b"]" * 200 + b"}", "exceeded max depth")])
def test_a_malformed_body_is_refused(body, text):
    """400, in the words of Go's decoder."""
    for read in (REQUESTS.generate, REQUESTS.chat, REQUESTS.embed, REQUESTS.embeddings, REQUESTS.show):
        status, found = told(read, body)
        assert status == 400 and text in found and len(found) < 120


def unmarshal(kind, path, wanted):
    return f"json: cannot unmarshal {kind} into Go struct field {path} of type {wanted}"


BAD_GENERATE = [
    ({"prompt": ["x"]}, unmarshal("array", "GenerateRequest.prompt", "string")),
    ({"prompt": 5}, unmarshal("number", "GenerateRequest.prompt", "string")),
    ({"system": {}}, unmarshal("object", "GenerateRequest.system", "string")),
    ({"stream": "yes"}, unmarshal("string", "GenerateRequest.stream", "bool")),
    ({"raw": 1}, unmarshal("number", "GenerateRequest.raw", "bool")),
    ({"truncate": "x"}, unmarshal("string", "GenerateRequest.truncate", "bool")),
    ({"top_logprobs": 1.5}, unmarshal("number 1.5", "GenerateRequest.top_logprobs", "int")),
    ({"context": [1, "x"]}, unmarshal("string", "GenerateRequest.context[1]", "int")),
    ({"context": [1e20]}, unmarshal("number 1e+20", "GenerateRequest.context[0]", "int")),
    ({"context": [-10 ** 19]}, unmarshal("number -1e+19", "GenerateRequest.context[0]", "int")),
    ({"keep_alive": {}}, unmarshal("object", "GenerateRequest.keep_alive", "Duration")),
    ({"keep_alive": "soon"}, 'time: invalid duration "soon"'), ({"keep_alive": "5x"}, 'time: invalid duration "5x"'),
    ({"keep_alive": "10"}, 'time: missing unit in duration "10"'),
    ({"options": [1]}, "options"),
    ({"top_logprobs": 21}, "top_logprobs must be between 0 and 20"),
    ({"top_logprobs": -1}, "top_logprobs must be between 0 and 20"),
    ({"images": ["no base64!"]}, "illegal base64 data"),
    ({"think": "very"}, "invalid think value"), ({"think": 5}, "think must be a boolean or string"),
    ({"format": "xml"}, 'invalid format: "xml"; expected "json" or a valid JSON Schema object'),
    ({"format": 5}, "invalid format: 5"),
    ({"options": {"temperature": "warm"}}, 'option "temperature" must be of type float32'),
    ({"options": {"temperature": True}}, 'option "temperature" must be of type float32'),
    ({"options": {"seed": "x"}}, 'option "seed" must be of type integer'),
    ({"options": {"seed": 1e300}}, 'option "seed" must be an integer of 64 bits'),
    ({"options": {"num_gpu": "all"}}, 'option "num_gpu" must be of type integer'),
    ({"options": {"use_mmap": 1}}, 'option "use_mmap" must be of type boolean'),
    ({"options": {"stop": "x"}}, 'option "stop" must be of type array'),
    ({"options": {"stop": [5]}}, 'option "stop" must be of an array of strings'),
    ({"options": {"num_predict": LIMIT + 1}}, f"limit of this server, {LIMIT}"),
    ({"raw": True, "system": "x"}, "raw mode does not support template, system, or context"),
    ({"raw": True, "template": "x"}, "raw mode does not support template, system, or context"),
    ({"raw": True, "context": [1]}, "raw mode does not support template, system, or context"),
    ({"model": "bad name"}, "invalid model name"), ({"model": "a/b/c/d"}, "invalid model name"),
    ({"model": "x" * 81}, "invalid model name")]


@pytest.mark.parametrize("fields, text", BAD_GENERATE)
def test_a_wrong_field_of_generate_is_400(fields, text):
    """In Ollama's words, also where Ollama calls it 500."""
    status, found = told(REQUESTS.generate, {"model": MODEL, "prompt": "Hi", **fields})
    assert status == 400 and text in found


@pytest.mark.parametrize("fields, text", [
    ({"messages": "Hi"}, unmarshal("string", "ChatRequest.messages", "[]")),
    ({"messages": ["Hi"]}, unmarshal("string", "ChatRequest.messages[0]", "object")),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]},
     unmarshal("array", "ChatRequest.messages[0].content", "string")),
    ({"messages": [{"role": 5}]}, unmarshal("number", "ChatRequest.messages[0].role", "string")),
    ({"messages": [*MESSAGES, {"role": "user", "images": "x"}]}, "ChatRequest.messages[1].images"),
    ({"messages": [{"role": "user", "images": ["%"]}]}, "illegal base64 data in ChatRequest.messages[0].images[0]"),
    ({"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}]},
     unmarshal("string", "ChatRequest.messages[0].tool_calls[0].function.arguments", "object")),
    ({"tools": [5]}, unmarshal("number", "ChatRequest.tools[0]", "object")),
    ({"tools": [{"function": "f"}]}, unmarshal("string", "ChatRequest.tools[0].function", "object")),
    ({"tools": [{"function": {"name": "f", "parameters": []}}]},
     unmarshal("array", "ChatRequest.tools[0].function.parameters", "object")),
    ({"tools": [{"function": {"name": 5}}]}, unmarshal("number", "ChatRequest.tools[0].function.name", "string")),
    ({"shift": 1}, unmarshal("number", "ChatRequest.shift", "bool")),
    ({"keep_alive": "10"}, 'time: missing unit in duration "10"')])
def test_a_wrong_field_of_chat_is_400(fields, text):
    """With its path down to the member that is wrong."""
    status, found = told(REQUESTS.chat, {"model": MODEL, "messages": MESSAGES, **fields})
    assert status == 400 and text in found


@pytest.mark.parametrize("read, body, status, text", [
    (REQUESTS.generate, {"prompt": "Hi"}, 404, "model '' not found"),
    (REQUESTS.generate, {"model": " ", "prompt": "Hi"}, 404, "model ' ' not found"),
    (REQUESTS.generate, {"model": "Nope", "prompt": "Hi"}, 404, "model 'Nope' not found"),
    (REQUESTS.generate, {"model": "llama3", "prompt": "Hi"}, 404, "model 'llama3' not found"),
    (REQUESTS.chat, {"model": "nope:1b", "messages": MESSAGES}, 404, "model 'nope:1b' not found"),
    (REQUESTS.embed, {"model": "nope", "input": "a"}, 404, "model 'nope' not found"),
    (REQUESTS.embeddings, {"model": "nope", "prompt": "a"}, 404, "model 'nope' not found"),
    (REQUESTS.show, {"model": "nope"}, 404, "model 'nope' not found"),
    (REQUESTS.show, {"name": ""}, 400, "model is required"),
    *((read, body, 400, "model is required") for body in ({}, {"model": None}, {"model": ""}, {"model": " "})
      for read in (REQUESTS.chat, REQUESTS.embed, REQUESTS.embeddings, REQUESTS.show))])
def test_a_model_that_is_not_served_is_not_found(read, body, status, text):
    """Whether Ollama has it or not; all routes but generate report a missing name."""
    assert told(read, body) == (status, text)


@pytest.mark.parametrize("given, texts", [("a", ["a"]), (["a", "b", "a"], ["a", "b", "a"]), ("", []), ([], []),
                                          (None, [])])
def test_each_text_is_a_call_of_its_own(given, texts):
    """In order, so that each has its own entry; without a text there is none."""
    name, calls = REQUESTS.embed(json.dumps({"model": "gpt-4o-mini", "input": given}).encode())
    assert name == "gpt-4o-mini" and calls == [ModelCall.of(EMBED, MODEL, input=text) for text in texts]


@pytest.mark.parametrize("field, value, sent", [
    ("truncate", False, {"truncate": False}), ("dimensions", 5, {"dimensions": 5}), ("dimensions", 0, {}),
    ("truncate", True, {"truncate": True}), ("keep_alive", "5m", {}), ("other", 1, {}),
    ("options", {"num_gpu": 1, "num_ctx": 8192, "num_predict": 9999}, {"options": {"num_predict": 9999}}),
    ("options", {"temperature": 1}, {"options": {"temperature": 1.0}})])
def test_a_field_of_embed_is_sent_as_it_is_given(field, value, sent):
    """Options of the load are the operator's; those of a generation are sent, though they change nothing."""
    _, (embedding,) = REQUESTS.embed(json.dumps({"model": MODEL, "input": "a", field: value}).encode())
    assert embedding.body == {"model": MODEL, "input": "a", **sent}


def test_as_many_texts_are_embedded_as_openai_takes():
    """A call for each, in order."""
    _, calls = REQUESTS.embed(json.dumps({"model": MODEL, "input": ["a"] * 2047 + ["b"]}).encode())
    assert [call.text for call in calls] == ["a"] * 2047 + ["b"]


def test_the_old_form_is_a_call_of_its_own():
    """Ollama does not normalise what it gives there."""
    def read(**fields):
        return REQUESTS.embeddings(json.dumps({"model": MODEL, "prompt": "a", **fields}).encode())

    assert read(keep_alive="5m", options={"num_gpu": 1}) == ModelCall.of(EMBEDDINGS, MODEL, prompt="a")
    assert read(options={"seed": 1}).body == {"model": MODEL, "prompt": "a", "options": {"seed": 1}}
    assert read(prompt="") is None
    status, text = told(REQUESTS.embeddings, {"model": MODEL, "prompt": "a", "options": {"num_ctx": 9000}})
    assert status == 400 and "8192 tokens" in text


@pytest.mark.parametrize("fields, text", [
    *[({"input": given}, "invalid input type") for given in (5, False, {}, ["a", None], ["a", 1])],
    ({"input": ["a", ""]}, "input[1] is empty"),
    ({"input": ["a"] * 2049}, "2049 texts; this server takes at most 2048"),
    ({"truncate": 1}, unmarshal("number", "EmbedRequest.truncate", "bool")),
    ({"dimensions": "4"}, unmarshal("string", "EmbedRequest.dimensions", "int")),
    ({"dimensions": 1e20}, unmarshal("number 1e+20", "EmbedRequest.dimensions", "int")),
    ({"options": {"num_ctx": 9000}}, "8192 tokens")])
def test_a_wrong_field_of_embed_is_400(fields, text):
    """In Ollama's words."""
    status, found = told(REQUESTS.embed, {"model": MODEL, "input": "a", **fields})
    assert status == 400 and text in found


@pytest.mark.parametrize("body, shown", [
    ({"model": MODEL}, (MODEL, {})), ({"model": "", "name": "gpt-4o-mini", "options": None}, (MODEL, {})),
    ({"name": "other:1b", "verbose": True}, ("other:1b", {"verbose": True})),
    ({"model": MODEL, "name": "nope", "verbose": False, "system": "s"}, (MODEL, {"system": "s"})),
    ({"model": MODEL, "template": "t", "options": {"seed": 1}}, (MODEL, {"template": "t", "options": {"seed": 1}}))])
def test_what_to_show(body, shown):
    """The old name of the field counts where the new one is empty."""
    assert REQUESTS.show(json.dumps(body).encode()) == shown


VALUES = st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
                      | st.sampled_from([MODEL, "json", "Hi", 5, "aGk="]),
                      lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(
                          ["role", "content", "function", "name", "arguments", "stop", "num_ctx", "seed", "x"]), inner,
                          max_size=3), max_leaves=8)


@settings(max_examples=300)
@given(st.dictionaries(st.sampled_from([*GENERATE_FIELDS, *CHAT_FIELDS, *EMBED_FIELDS, "other"]), VALUES, max_size=6),
       st.booleans())
def test_any_object_is_a_call_that_can_be_sent_or_is_refused(body, named):
    """No other error is raised, whatever the fields contain."""
    for read in (REQUESTS.generate, REQUESTS.chat, REQUESTS.embed, REQUESTS.embeddings, REQUESTS.show):
        try:
            read(json.dumps({**body, **({"model": MODEL} if named else {})}).encode())
        except (InvalidRequest, MalformedJSON, ModelNotServed) as error:
            status, text = status_and_text(fault_of(error), error)
            assert status in (400, 404) and orjson.dumps(text)


@settings(max_examples=200)
@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_any_bytes_are_a_call_or_are_refused(body):
    """The same holds for bodies that are not JSON."""
    with pytest.raises((InvalidRequest, MalformedJSON, ModelNotServed)):
        REQUESTS.generate(body)


# From an answer to records

COMPLETION = Completion("stop", 11, 3, None, 910, 31, 90, 60, array("i", [1, 2]))
ANSWER = Answer(MODEL, "Hello", "Hm", (CALL,), ({"token": "He", "logprob": -0.1},), completion=COMPLETION)
FIGURES = {"total_duration": 910, "load_duration": 31, "prompt_eval_count": 11, "prompt_eval_duration": 90,
           "eval_count": 3, "eval_duration": 60}


def grammar(endpoint=GENERATE, name="gpt-4o-mini"):
    asked = generate(model=name) if endpoint == GENERATE else chat(model=name)
    return OllamaGrammar(asked)


def generated():
    return Reply(0.0, "miss", "miss", None)


def hit():
    return Reply(0.0, "hit", None, Entry(ANSWER, 0.0, 0.0))


@pytest.mark.parametrize("endpoint", [GENERATE, CHAT])
def test_a_plain_answer_is_one_record(endpoint):
    """With all of the answer, its ending, and the model as the client called it."""
    record = json.loads(grammar(endpoint).whole(ANSWER, generated(), {}))
    assert (record["model"], record["done"], record["context"]) == ("gpt-4o-mini", True, [1, 2])
    assert piece_of(record) == ANSWER.pieces[-1]._replace(thinking="Hm") and completion_of(record) == COMPLETION
    created = datetime.fromisoformat(record["created_at"])
    assert record["created_at"].endswith("Z") and datetime.now(created.tzinfo) - created < timedelta(minutes=1)


def test_the_members_are_those_of_ollama():
    """Of both endpoints; what is empty is left out."""
    one = Answer(MODEL, "Hi", completion=Completion("length", 11, 3, None, 910, 31, 90, 60))
    record = json.loads(grammar().whole(one, generated(), {}))
    del record["created_at"]
    assert record == {"model": "gpt-4o-mini", "response": "Hi", "done": True, "done_reason": "length", **FIGURES}
    record = json.loads(grammar(CHAT).whole(one, generated(), {}))
    del record["created_at"]
    assert record == {"model": "gpt-4o-mini", "message": {"role": "assistant", "content": "Hi"}, "done": True,
                      "done_reason": "length", **FIGURES}


@pytest.mark.parametrize("endpoint", [GENERATE, CHAT])
def test_a_stream_is_a_record_a_line(endpoint):
    """Pieces one by one, an empty record while there is silence, and the ending with an empty text."""
    pieces = [Piece("Hel"), Piece("lo"), Piece("", "Hm", (CALL,), ({"token": "x", "logprob": -1.0},))]
    writer = grammar(endpoint)
    text = writer.pieces(pieces, generated()) + writer.waiting(Wait(3, 1.0)) + writer.end(ANSWER, generated(), {})
    assert text.endswith(b"\n") and writer.content_type == "application/x-ndjson"
    records = [json.loads(line) for line in text.splitlines()]
    assert [record["done"] for record in records] == [False] * 4 + [True]
    assert [piece_of(record) for record in records] == [*pieces, Piece(), Piece()]
    assert completion_of(records[-1]) == COMPLETION and "done_reason" not in records[0]


def test_a_hit_has_the_counts_of_then_and_the_time_of_now():
    """The other durations would be another call's."""
    for text in (grammar().whole(ANSWER, hit(), {}), grammar().end(ANSWER, hit(), {})):
        record = json.loads(text)
        durations = {name: value for name, value in record.items() if name.endswith("_duration")}
        assert durations.keys() == {"total_duration", "load_duration"}
        assert durations["load_duration"] == 0 < durations["total_duration"] != 910
        assert (record["prompt_eval_count"], record["eval_count"], record["context"]) == (11, 3, [1, 2])


def test_a_load_is_told_as_ollama_tells_it():
    """An empty answer whose reason is load."""
    for endpoint, said in ((GENERATE, {"response": ""}), (CHAT, {"message": {"role": "assistant", "content": ""}})):
        record = json.loads(grammar(endpoint).loaded())
        del record["created_at"]
        assert record == {"model": "gpt-4o-mini", **said, "done": True, "done_reason": "load"}


@pytest.mark.parametrize("error, status, text", [
    (OllamaRefused(400, '"x" does not support thinking'), 400, '"x" does not support thinking'),
    (OllamaRefused(501, "no embeddings"), 501, "no embeddings"), (OllamaRefused(404, "gone"), 404, "gone"),
    (OllamaRefused(500, "/root/.ollama: out of memory"), 502, str(OllamaRefused(500))),
    (ModelNotFound(MODEL), 404, "model 'llama3:8b' not found"),
    (ModelNotFound(MODEL, 'model "llama3:8b" not found, try pulling it first'), 404,
     'model "llama3:8b" not found, try pulling it first'),
    (PromptTooLong(9, 8, "the input length exceeds the context length"), 400,
     "the input length exceeds the context length"),
    (PromptTooLong(9, 8), 400, str(PromptTooLong(9, 8))),
    (OllamaUnavailable(), 503, str(OllamaUnavailable())), (QueueFull(1, 5), 503, str(QueueFull(1, 5)))])
def test_a_failure_is_told_in_ollamas_words_where_they_say_what_is_wrong_with_the_request(error, status, text):
    """Otherwise in ours, as Ollama's own messages may contain paths; in a stream it is a line."""
    assert status_and_text(fault_of(error), error) == (status, text)
    assert grammar().failed(fault_of(error), error) == orjson.dumps({"error": text}) + b"\n"


def test_aliases_are_listed_beside_their_models():
    """Under their own names, with the model's build."""
    inventory = [{"name": "llama3:8b", "model": "llama3:8b", "digest": "d1", "size": 5}, {"name": "other:1b"}]
    models = tags_of(inventory, [("gpt-4o-mini", "LLAMA3:8b"), ("gone", "lost:1b")])["models"]
    assert models == [inventory[0], {"name": "gpt-4o-mini", "model": "gpt-4o-mini", "digest": "d1", "size": 5},
                      inventory[1]]
