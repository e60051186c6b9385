"""The cache key: equal effective requests share it, differing ones never do, and no field can be forgotten."""

import dataclasses
import json
import re

import pytest
import responses
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from llama_api.cache.lru import key_for
from llama_api.waiting import Cancellation, Watchdog
from llama_api.answer import Question
from llama_api.ollama.client import OllamaClient
from llama_api.api.schemas import GenerateRequest, parse_object
from llama_api.settings import Settings
from tests.support.fakes import question

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
SCHEMA = GenerateRequest()
OTHER = {"prompt": "Other?", "max_tokens": 101, "temperature": 0.8, "system": "Be kind.", "stop": ("x",), "seed": 0,
         "top_p": 1.0, "top_k": 1}


def key_of(text, model="llama3:8b", num_ctx=None):
    """The key of a request body as it came over the wire."""
    return key_for(SCHEMA.load(parse_object(text.encode()))[0], model, num_ctx)


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
            forms += [f"{value}.0", f"{value}.00", f"{value}e0", f"{value}0e-1"]
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


@settings(max_examples=100, deadline=None)
@given(st.data(), BODIES)
def test_equal_effective_requests_share(data, body):
    """However a request is spelt, the same effective values make the same key."""
    assert key_of(data.draw(spellings(body))) == key_of(data.draw(spellings(body)))


@settings(max_examples=100, deadline=None)
@given(st.data(), BODIES, BODIES)
def test_differing_requests_never_share(data, one, other):
    """Requests that differ in any effective value, in one field or in many, have different keys."""
    for name in data.draw(st.sets(st.sampled_from(list(one)))):
        other[name] = one[name]
    assume(one != other)
    assert key_of(data.draw(spellings(one))) != key_of(data.draw(spellings(other)))


@settings(max_examples=100, deadline=None)
@given(BODIES, st.lists(st.tuples(TEXT, st.none() | st.integers(1, 10 ** 15)), min_size=2, max_size=2, unique=True))
def test_another_model_or_context_window_never_shares(body, pair):
    """The model's name and NUM_CTX are part of the key."""
    first, second = (key_for(question(body["prompt"]), *one) for one in pair)
    assert first != second


@pytest.mark.parametrize("one, other", [
    ({"prompt": "ab", "system": "c"}, {"prompt": "a", "system": "bc"}),
    ({"stop": ["ab"]}, {"stop": ["a", "b"]}), ({"stop": ["a", "b"]}, {"stop": ["b", "a"]}),
    ({"stop": ["a"]}, {"stop": ["a", "a"]}), ({"system": "x"}, {"stop": "x"}),
    ({"top_k": 1}, {"top_p": 1}), ({"seed": 0}, {}), ({"temperature": 0}, {}), ({"prompt": "é"}, {"prompt": "e\u0301"}),
    ({"prompt": "hi"}, {"prompt": "hi "}), ({"system": " "}, {})])
def test_neighbours_never_share(one, other):
    """What is easily run together keeps apart."""
    assert key_of(json.dumps({"prompt": "Hi"} | one)) != key_of(json.dumps({"prompt": "Hi"} | other))


def test_a_key_is_a_digest():
    """A key shows nothing of the prompt and is safe as a name in any store."""
    assert re.fullmatch("[0-9a-f]{64}", key_for(question("secret"), "llama3:8b", None))


def test_the_format_of_keys_is_pinned():
    """A change of the format must raise KEY_VERSION and then this figure: entries of another one are never misread."""
    full = question("Hi", system="s", stop=("a", "b"), seed=1, top_p=0.5, top_k=2)
    assert key_for(full, "llama3:8b", 4096) == (
        "0f1aafae5e89303f8c036bc1e70a6bfaf6417e93bc0862790d181f743533fa17")


def test_every_field_of_a_request_is_a_field_of_the_question():
    """Only ``stream`` changes nothing of the answer; a new field must go into Question."""
    assert set(SCHEMA.fields) - {"stream"} == {field.name for field in dataclasses.fields(Question)}


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Question)])
def test_every_field_of_the_question_changes_the_key(name):
    """A field that is left out of the key, or has no value to try here, fails by itself."""
    changed = dataclasses.replace(question(), **{name: OTHER[name]})
    assert key_for(changed, "m", None) != key_for(question(), "m", None)


@pytest.fixture
def payload_of():
    """What the client sends for a question."""
    with responses.RequestsMock() as upstream:
        upstream.assert_all_requests_are_fired = False
        upstream.post("http://127.0.0.1:11434/api/show", json={})
        upstream.post("http://127.0.0.1:11434/api/generate", json={"response": "x", "done": True})
        client = OllamaClient(Settings(), Watchdog())

        def send(asked):
            client.generate(asked, "build-1", Cancellation(), lambda piece: None)
            return json.loads(upstream.calls[-1].request.body)

        yield send


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Question)])
def test_every_field_of_the_question_reaches_ollama(payload_of, name):
    """A field that is part of the key but is not sent would split entries for nothing, and lie to the caller."""
    assert payload_of(dataclasses.replace(question(), **{name: OTHER[name]})) != payload_of(question())
