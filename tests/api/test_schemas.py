"""The body of POST /generate: the JSON around it, then each of its fields."""

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from marshmallow import ValidationError

from llama_api.api.schemas import GenerateRequest
from llama_api.core import Models
from llama_api.errors import MalformedJSON
from llama_api.model_call import ModelCall
from llama_api.strict_json import parse_object
from tests.support.fakes import call

MODELS = Models(None, "llama3:8b")
SCHEMA = GenerateRequest(MODELS)
MISSING = type("Missing", (), {"__repr__": lambda self: "missing"})()


def load(**fields):
    """Load a body with a prompt and ``fields``; MISSING leaves a field out."""
    return SCHEMA.load({name: value for name, value in {"prompt": "Hi", **fields}.items() if value is not MISSING})


def faults(body):
    """The faults of ``body``, by field."""
    with pytest.raises(ValidationError) as caught:
        SCHEMA.load(body)
    return caught.value.messages_dict


# parse_object


@pytest.mark.parametrize("body, found", [
    (b"{}", {}), (b' \r\n\t{"a": 1} \n', {"a": 1}), (b'{"a": {"b": [1, 2.5, null, true]}}',
                                                     {"a": {"b": [1, 2.5, None, True]}}),
    ('{"a": "ä漢😀"}'.encode(), {"a": "ä漢😀"}), (b'{"a": "\\ud83d\\ude00"}', {"a": "😀"}),
    (b'{"a": "\\ud83d"}', {"a": "\ud83d"}), (b'{"": 1}', {"": 1}),
    (b'{"a": {"b": 1}, "b": 2}', {"a": {"b": 1}, "b": 2}),
    (b'{"a": 0.70, "b": 1E2, "c": -0.0}', {"a": 0.7, "b": 100.0, "c": -0.0}), (b'{"a": "NaN"}', {"a": "NaN"})])
def test_one_json_object_is_parsed(body, found):
    """Any JSON object of RFC 8259 comes out as it is."""
    assert parse_object(body) == found


@pytest.mark.parametrize("body, reason", [
    (b"", "line 1"), (b" ", "line 1"), (b"{", "line 1"), (b'{"a":}', "column"), (b'{"a": 1,}', "column"),
    (b"{'a': 1}", "column"), (b'{"a": 1} {}', "Extra data"), (b'{"a": 1}\x00', "Extra data"),
    (b'{"a": 01}', "column"), (b'{"a": .5}', "column"), (b'{"a": +1}', "column"), (b'{"a": 1.}', "column"),
    (b'{"a": "\n"}', "control character"), (b'{"a": "\\x"}', "escape"), (b'{"a": // 1\n 1}', "column"),
    (b"[]", "not an object"), (b"null", "not an object"), (b'"{}"', "not an object"), (b"5", "not an object"),
    (b"true", "not an object"), (b'{"a": NaN}', "NaN"), (b'{"a": Infinity}', "Infinity"),
    (b'{"a": [-Infinity]}', "-Infinity"), (b"NaN", "NaN"),
    (b'{"a": 1, "a": 1}', "twice"), (b'{"a": 1, "\\u0061": 2}', "twice"), (b'{"b": {"a": 1, "a": 2}}', "twice"),
    (b'{"a": "\xff"}', "byte 7"), ('{"a": 1}'.encode("utf-16"), "UTF-8"), (b'{"a": "\xed\xa0\x80"}', "UTF-8"),
    (b"\xef\xbb\xbf{}", "line 1"), (b'{"a": ' + b"9" * 5000 + b"}", "number"),
    (b'{"a": ' * 100_000, "nested"), (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested")])
def test_what_is_not_one_json_object_is_refused_with_the_reason(body, reason):
    """Each malformed body raises MalformedJSON that says what and where, and shows nothing else of it."""
    with pytest.raises(MalformedJSON) as caught:
        parse_object(body)
    assert reason in str(caught.value) and len(str(caught.value)) < 120


@settings(max_examples=100)
@given(st.binary(max_size=60) | st.text(alphabet='{}[]":,\\u0123aeNI+-. ', max_size=60).map(str.encode))
def test_any_bytes_are_parsed_or_refused(body):
    """Any input is an object or MalformedJSON, never another exception, in agreement with the standard parser."""
    try:
        found = parse_object(body)
    except MalformedJSON:
        return
    assert found == json.loads(body)


# The fields


def test_a_prompt_alone_gets_the_defaults():
    """100 tokens at 0.7, and nothing else set."""
    assert load() == (call("Hi"), False)


GOOD = [
    ("model", "llama3:8b", "llama3:8b"), ("model", " Library/LLAMA3:8B ", "llama3:8b"),
    ("prompt", "x", "x"), ("prompt", " x\n", " x\n"), ("prompt", "ä\u2028😀\x00", "ä\u2028😀\x00"),
    ("prompt", "\u200b", "\u200b"),
    ("max_tokens", 1, 1), ("max_tokens", 8192, 8192), ("max_tokens", 5.0, 5), ("max_tokens", 1e2, 100),
    ("temperature", 0, 0.0), ("temperature", 2, 2.0), ("temperature", 0.5, 0.5), ("temperature", -0.0, 0.0),
    ("temperature", 5e-324, 5e-324),
    ("system", "Be kind.", "Be kind."), ("system", "", None), ("system", " ", " "),
    ("stop", "x", ["x"]), ("stop", ["x"], ["x"]), ("stop", ["b", "a", "b"], ["b", "a", "b"]), ("stop", [], None),
    ("stop", " ", [" "]), ("stop", ["\n"] * 16, ["\n"] * 16), ("stop", "漢", ["漢"]),
    ("seed", 0, 0), ("seed", 2 ** 31 - 1, 2 ** 31 - 1), ("seed", 7.0, 7), ("seed", -0.0, 0),
    ("top_p", 1, 1.0), ("top_p", 1e-9, 1e-9), ("top_p", 0.9, 0.9),
    ("top_k", 1, 1), ("top_k", 1000, 1000), ("top_k", 40.0, 40)]


@pytest.mark.parametrize("name, value, effective", GOOD)
def test_good_values_are_taken(name, value, effective):
    """A value in its range comes out as the type that the key and Ollama want."""
    body = load(**{name: value})[0].body
    found = {**body, **body["options"]}.get({"max_tokens": "num_predict"}.get(name, name))
    assert found == effective and type(found) is type(effective)
    if found == 0:
        assert math.copysign(1, found) == 1


@pytest.mark.parametrize("value, streamed", [(True, True), (False, False), (None, False), (MISSING, False)])
def test_stream_is_true_only_when_asked_for(value, streamed):
    """``stream`` is a boolean outside of the call, not a part of it."""
    assert load(stream=value) == (load()[0], streamed)


NO_TEXT = [5, 1.5, True, [], ["x"], {}, {"a": "x"}]
NO_NUMBER = ["5", "", "0.5", True, False, [], [5], {}, "NaN", 10 ** 400, -10 ** 400, float("1e400"), -float("1e400")]
NO_INTEGER = [*NO_NUMBER, 5.5, 1e-300]
BAD = [
    *[("prompt", value) for value in [*NO_TEXT, MISSING, None, "", " ", "\n\t\r ", "\u3000", "a\ud83d", "\udc00"]],
    *[("max_tokens", value) for value in [*NO_INTEGER, 0, -1, 8193, 1e22, 2 ** 64, 10 ** 4000]],
    *[("temperature", value) for value in [*NO_NUMBER, -0.001, 2.001, 1e300, 3]],
    *[("system", value) for value in [*NO_TEXT, "\ud83d"]],
    *[("model", value) for value in [*NO_TEXT, "\ud83d", "", "llama3", "llama3:8", "gpt-4o"]],
    *[("stop", value) for value in [5, True, {}, {"a": "x"}, "", [""], ["x", ""], [5], [None], [["x"]], ["x"] * 17,
                                    [True], "\ud83d", ["x", "\udfff"]]],
    *[("seed", value) for value in [*NO_INTEGER, -1, 2 ** 31, 2 ** 63]],
    *[("top_p", value) for value in [*NO_NUMBER, 0, 0.0, -0.0, 1.0001, -1]],
    *[("top_k", value) for value in [*NO_INTEGER, 0, -1, 1001]],
    *[("stream", value) for value in [0, 1, 1.0, "true", "false", "", [], {}, "yes"]]]


@pytest.mark.parametrize("name, value", BAD, ids=[f"{name}-{value!r:.30}" for name, value in BAD])
def test_bad_values_are_refused_by_field(name, value):
    """A wrong type, a wrong range and text that is none are faults of that field alone, each a sentence."""
    body = {"prompt": "Hi", name: value}
    if value is MISSING:
        del body[name]
    found = faults(body)
    assert list(found) == [name]
    assert all(sentence.endswith(".") and len(sentence) < 120 for sentence in found[name])


@pytest.mark.parametrize("name", [name for name in SCHEMA.fields if name != "prompt"])
def test_null_means_the_default(name):
    """``null`` for an optional field is as if it were not there."""
    assert load(**{name: None}) == load()


@pytest.mark.parametrize("name", ["promt", "num_ctx", "Prompt", "prompt ", "options", "", "a.b", "models", "\ud83d"])
def test_an_unknown_field_is_named(name):
    """A field that does not exist is an error that names it."""
    assert faults({"prompt": "Hi", name: None}) == {name: ["Unknown field."]}


def test_all_faults_are_told_at_once():
    """Every wrong field is listed, not only the first."""
    assert set(faults({"max_tokens": 0, "temperature": "hot", "extra": 1})) == {
        "prompt", "max_tokens", "temperature", "extra"}


@pytest.mark.parametrize("limit, default", [(8192, 100), (100, 100), (50, 50), (1, 1)])
def test_the_limit_of_tokens_caps_the_default_too(limit, default):
    """With a limit under 100 an omitted ``max_tokens`` is the limit; beyond it is a fault."""
    schema = GenerateRequest(MODELS, limit)
    assert schema.load({"prompt": "Hi"})[0].options["num_predict"] == default
    assert schema.load({"prompt": "Hi", "max_tokens": None})[0].options["num_predict"] == default
    assert schema.load({"prompt": "Hi", "max_tokens": limit})[0].options["num_predict"] == limit
    with pytest.raises(ValidationError, match=str(limit)):
        schema.load({"prompt": "Hi", "max_tokens": limit + 1})


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters(), max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3), max_leaves=5)


@settings(max_examples=100)
@given(st.dictionaries(st.sampled_from([*SCHEMA.fields, "other"]), VALUES, max_size=5))
def test_any_object_is_a_call_or_a_fault(body):
    """For any fields the outcome is a ModelCall or ValidationError."""
    try:
        made, streamed = SCHEMA.load(body)
    except ValidationError:
        return
    assert isinstance(made, ModelCall) and isinstance(streamed, bool)
    assert 1 <= made.options["num_predict"] <= 8192 and 0 <= made.options["temperature"] <= 2
