"""The cache key: equal requests to Ollama share it, differing ones never do, and what is keyed is what is sent."""

import json
import re

import pytest
import responses
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from llama_api.api.schemas import GenerateRequest
from llama_api.core import Models
from llama_api.model_call import CHAT, GENERATE, ModelCall
from llama_api.ollama import OllamaClient
from llama_api.settings import Settings
from llama_api.waiting import Cancellation, Watchdog
from tests.support.fakes import call

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
EFFECTIVE = {  # each field of a request with values as they take effect
    "prompt": TEXT.filter(str.strip),
    "max_tokens": st.integers(1, 8192),
    "temperature": st.floats(0, 2),
    "system": st.none() | TEXT,
    "stop": st.lists(TEXT, max_size=3),
    "seed": st.none() | st.integers(0, 2 ** 31 - 1),
    "top_p": st.none() | st.floats(0, 1, exclude_min=True),
    "top_k": st.none() | st.integers(1, 1000)}
ABSENT = {"max_tokens": 100, "temperature": 0.7, "system": None, "stop": [], "seed": None, "top_p": None,
          "top_k": None}
BODIES = st.fixed_dictionaries(EFFECTIVE)
MODELS = Models(None, "llama3:8b", ["other:1b"], [("gpt-4o-mini", "llama3:8b")])
SCHEMA = GenerateRequest(MODELS)


def key_of(text, schema=SCHEMA):
    """The key of a request body as it came over the wire."""
    return schema.read(text.encode())[0].key


@st.composite
def spellings(draw, body):
    """A JSON text of ``body``: any order, defaults left out or null, numbers and stops in any of their forms."""
    parts = []
    for name in draw(st.permutations(list(body))):
        value = body[name]
        forms = [json.dumps(value), json.dumps(value, ensure_ascii=False)]
        if name in ABSENT and value == ABSENT[name]:
            forms += ["null", None]
        if name == "system" and value is None:
            forms.append('""')
        if name == "stop" and len(value) == 1:
            forms.append(json.dumps(value[0]))
        if type(value) is int:
            forms += [f"{value}.0", f"{value}.00", f"{value}e0", *([f"{value}0e-1"] if value else [])]
        if type(value) is float:
            forms += [f"{value!r}e0" if "e" not in repr(value) else repr(value)]
            forms += [repr(value) + "0"] if "e" not in repr(value) else []
            forms += [str(int(value))] if value.is_integer() else []
            forms += ["-0.0"] if value == 0 and name == "temperature" else []
        form = draw(st.sampled_from(forms))
        if form is not None:
            parts.append(f"{json.dumps(name)}:{draw(st.sampled_from(['', ' ', chr(10)]))}{form}")
    if draw(st.booleans()):
        parts.append(f'"stream": {draw(st.sampled_from(["true", "false", "null"]))}')
    return "{" + ", ".join(parts) + "}"


@settings(max_examples=100)
@given(st.data(), BODIES)
def test_equal_effective_requests_share(data, body):
    """However a request is spelt, the same effective values make the same key."""
    assert key_of(data.draw(spellings(body))) == key_of(data.draw(spellings(body)))


@settings(max_examples=100)
@given(st.data(), BODIES, BODIES)
def test_differing_requests_never_share(data, one, other):
    """Requests that differ in any effective value, in one field or in many, have different keys."""
    for name in data.draw(st.sets(st.sampled_from(list(one)))):
        other[name] = one[name]
    assume(one != other)
    assert key_of(data.draw(spellings(one))) != key_of(data.draw(spellings(other)))


def test_another_model_or_context_window_never_shares():
    """The model and NUM_CTX are part of the key; another name of a model is not."""
    body = {"prompt": "Hi"}
    keys = [key_of(json.dumps(body | {"model": model})) for model in ("llama3:8b", "other:1b")]
    keys += [key_of(json.dumps(body), GenerateRequest(MODELS, num_ctx=size)) for size in (2048, 4096)]
    assert len(set(keys)) == 4
    for name in (None, "LLAMA3:8B", "library/llama3:8b", "gpt-4o-mini", "GPT-4o-mini:latest"):
        assert key_of(json.dumps(body | {"model": name})) == keys[0]


@pytest.mark.parametrize("one, other", [
    ({"prompt": "ab", "system": "c"}, {"prompt": "a", "system": "bc"}),
    ({"stop": ["ab"]}, {"stop": ["a", "b"]}), ({"stop": ["a", "b"]}, {"stop": ["b", "a"]}),
    ({"stop": ["a"]}, {"stop": ["a", "a"]}), ({"system": "x"}, {"stop": "x"}),
    ({"top_k": 1}, {"top_p": 1}), ({"seed": 0}, {}), ({"temperature": 0}, {}), ({"prompt": "é"}, {"prompt": "e\u0301"}),
    ({"prompt": "hi"}, {"prompt": "hi "}), ({"system": " "}, {})])
def test_neighbours_never_share(one, other):
    """Requests that are easily confused have different keys."""
    assert key_of(json.dumps({"prompt": "Hi"} | one)) != key_of(json.dumps({"prompt": "Hi"} | other))


def test_a_key_is_a_digest():
    """A key shows nothing of the prompt and is safe as a name in any store."""
    assert re.fullmatch("[0-9a-f]{64}", call("secret").key)


def test_the_format_of_keys_is_pinned():
    """A change of the format must raise KEY_VERSION and then this figure: entries of another one are never misread."""
    full = call("Hi", system="s", options={"stop": ["a", "b"], "seed": 1, "top_p": 0.5, "top_k": 2, "num_ctx": 4096})
    assert full.key == (
        "d00d22c72c02a9ee563b1f1e46dc54d045a0a55b4e4f41ee4bc1a97e7b6f1a5a")


JSON = st.recursive(st.none() | st.booleans() | st.integers(-2 ** 53, 2 ** 53) | TEXT,
                    lambda values: st.lists(values, max_size=3) | st.dictionaries(TEXT, values, max_size=3),
                    max_leaves=6)
OPTIONS = st.dictionaries(
    st.sampled_from(["num_predict", "temperature", "top_p", "seed", "stop"]),
    st.none() | st.integers(0, 9) | st.floats(0, 9) | st.lists(TEXT, max_size=2), max_size=4)
CALLS = st.tuples(st.sampled_from([GENERATE, CHAT]), st.sampled_from(["a", "b"]), OPTIONS, st.dictionaries(
    st.sampled_from(["prompt", "messages", "tools", "format", "truncate", "think"]), JSON, max_size=4))


def sent_of(made):
    """The facts that make two requests the same to Ollama, with the order in which it reads schemas and messages."""
    return made.endpoint, json.dumps(dict(made.body))


def shuffled(data, values):
    return {name: values[name] for name in data.draw(st.permutations(list(values)))}


@settings(max_examples=200)
@given(st.data(), CALLS, CALLS)
def test_keys_are_equal_if_and_only_if_the_requests_to_ollama_are(data, one, other):
    """From any door: same endpoint, model, fields and options, in any order, and nothing else."""
    if data.draw(st.booleans()):
        other = (*one[:2], shuffled(data, one[2]), shuffled(data, one[3]))
    first, second = (ModelCall.of(endpoint, model, options, **fields) for endpoint, model, options, fields in
                     (one, other))
    assert (first.key == second.key) == (sent_of(first) == sent_of(second))


@pytest.mark.parametrize("name, one, other", [
    ("temperature", 1, 1.0), ("temperature", 0.0, -0.0), ("top_p", 1, 1.0), ("num_predict", 5.0, 5),
    ("seed", 7.0, 7), ("top_k", None, ...)])
def test_one_value_has_one_form(name, one, other):
    """Ollama reads 1 and 1.0 alike, and an option that is null as absent."""
    options = [{name: value} for value in (one, other) if value is not ...] + [{}] * (other is ...)
    assert len({call(options=given).key for given in options}) == 1


@pytest.fixture
def sent():
    """The parsed body that the client posts for a call."""
    with responses.RequestsMock() as upstream:
        upstream.post("http://127.0.0.1:11434/api/generate", json={"response": "x", "done": True})
        client = OllamaClient("http://127.0.0.1:11434", Settings(keep_alive="10m"), Watchdog())

        def send(asked):
            client.generate(asked, "build-1", 30.0, Cancellation(), lambda pieces: None)
            return json.loads(upstream.calls[-1].request.body)

        yield send


def test_what_is_keyed_is_what_is_sent(sent):
    """The body that is hashed goes to Ollama whole; only ``stream`` and ``keep_alive`` are added."""
    asked = call("Hi", system="Be kind.", options={"top_k": 3})
    assert sent(asked) == dict(asked.body) | {"stream": True, "keep_alive": "10m"}
