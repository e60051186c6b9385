"""Requests for embeddings in OpenAI's form: what is asked, and what is refused by its path."""

import json

import pytest

from llama_api.api.openai_embeddings import AskedVectors, read_embeddings
from llama_api.api.openai_errors import FieldError
from llama_api.core import Models
from llama_api.errors import MalformedJSON, ModelNotServed
from tests.api.test_openai_requests import MISSING, TYPE, VALUE, PlayedFleet

MODELS = Models(PlayedFleet(("embedding",)), "llama3:8b", [], [("text-embedding-3-small", "llama3:8b")])


def read(models=MODELS, **fields):
    return read_embeddings(json.dumps({"model": "llama3:8b", "input": "Hi", **fields}).encode(), models)


@pytest.mark.parametrize("fields, asked", [
    ({}, (("Hi",), None, False)), ({"input": ["a", "b", "a"]}, (("a", "b", "a"), None, False)),
    ({"model": "text-embedding-3-small"}, (("Hi",), None, False)), ({"dimensions": 3}, (("Hi",), 3, False)),
    ({"encoding_format": "base64"}, (("Hi",), None, True)), ({"encoding_format": "FLOAT"}, (("Hi",), None, False)),
    ({"user": 5, "prefix": "x", "dimensions": None, "encoding_format": None}, (("Hi",), None, False)),
    ({"input": [" "] * 2048}, ((" ",) * 2048, None, False))])
def test_what_is_asked(fields, asked):
    """Texts in their order, duplicates included; the encoding is the answer's alone."""
    assert read(**fields) == AskedVectors("llama3:8b", *asked)


@pytest.mark.parametrize("fields, param, code", [
    ({"input": None}, "input", TYPE), ({"input": 5}, "input", TYPE), ({"input": {}}, "input", TYPE),
    ({"input": ""}, "input", VALUE), ({"input": []}, "input", VALUE), ({"input": ["x"] * 2049}, "input", VALUE),
    ({"input": ["a", ""]}, "input[1]", VALUE), ({"input": ["a", None]}, "input[1]", TYPE),
    ({"input": ["\ud800"]}, "input[0]", VALUE), ({"dimensions": 0}, "dimensions", VALUE),
    ({"dimensions": "3"}, "dimensions", TYPE), ({"encoding_format": "int8"}, "encoding_format", VALUE),
    ({"encoding_format": 5}, "encoding_format", TYPE), ({"model": None}, "model", TYPE)])
def test_a_wrong_field_is_refused_by_its_path(fields, param, code):
    """The path names the one text of a list that is wrong."""
    with pytest.raises(FieldError) as raised:
        read(**fields)
    assert (raised.value.param, raised.value.code) == (param, code)


@pytest.mark.parametrize("tokens", [[1, 2], [[1, 2], [3]]])
def test_who_sends_tokens_is_told_how_not_to(tokens):
    """LangChain does so by default."""
    with pytest.raises(FieldError, match="LangChain.*check_embedding_ctx_length"):
        read(input=tokens)


def test_what_no_field_can_cure():
    """No body, no input, another model, and a model that cannot embed."""
    with pytest.raises(MalformedJSON):
        read_embeddings(b"[]", MODELS)
    with pytest.raises(FieldError) as raised:
        read_embeddings(b'{"model": "llama3:8b"}', MODELS)
    assert (raised.value.param, raised.value.code) == ("input", MISSING)
    with pytest.raises(ModelNotServed):
        read(model="nomic-embed-text")
    with pytest.raises(FieldError, match="does not support embedding") as raised:
        read(Models(PlayedFleet(("completion",)), "llama3:8b"))
    assert (raised.value.param, raised.value.code) == ("model", "unsupported_value")
