"""The OpenAPI document is true of OpenAI's API: what it takes, what it answers, how it fails."""

import json

import pytest
from jsonschema import Draft202012Validator

from llama_api.api.openai_requests import CHAT_FIELDS, COMPLETION_FIELDS, IGNORED
from tests.api.test_openai_requests import BOTH, CHATS, COMPLETIONS, HI
from tests.api.test_openapi import closed, make_client, resolved

BODIES = {"/v1/chat/completions": {"model": "llama3:8b", "messages": HI, "max_tokens": 3},
          "/v1/completions": {"model": "llama3:8b", "prompt": "Hi", "max_tokens": 3}}
KINDS = {"/v1/chat/completions": ("ChatCompletion", CHAT_FIELDS), "/v1/completions": ("Completion", COMPLETION_FIELDS)}


@pytest.fixture(scope="module")
def document():
    return make_client()[1]


def validator(document, name):
    return Draft202012Validator({"$ref": f"#/components/schemas/{name}", "components": document["components"]})


@pytest.mark.parametrize("path", BODIES)
def test_the_request_has_the_fields_that_the_door_knows(document, path):
    """All of them and no other; the limit of tokens is the setting's."""
    kind, known = KINDS[path]
    schema = document["components"]["schemas"][f"{kind}Request"]
    assert schema["properties"].keys() == known | IGNORED and schema["additionalProperties"] is False
    limited = make_client(max_tokens_limit=50)[1]["components"]["schemas"][f"{kind}Request"]
    assert limited["properties"]["max_tokens"]["anyOf"][0]["maximum"] == 50


@pytest.mark.parametrize("path", BODIES)
def test_what_the_document_refuses_the_door_refuses(document, path):
    """Of the faults of single fields nearly all are in the schema; no honoured request is outside of it."""
    rows = [*BOTH, *(CHATS if "chat" in path else COMPLETIONS)]
    check = validator(document, f"{KINDS[path][0]}Request")
    assert check.is_valid(BODIES[path]) and check.is_valid({**BODIES[path], **dict.fromkeys(IGNORED, 1), "stop": "x"})
    flat = [fields for fields, param, _ in rows if "." not in param and "[" not in param]
    taken = [fields for fields in flat if check.is_valid({**BODIES[path], **fields})]
    assert len(taken) <= 4, taken  # surrogates, numbers that need another field, a tool choice of another kind


@pytest.mark.parametrize("path", BODIES)
def test_answers_and_failures_are_as_documented(double, path):
    """Plain, cached, streamed with usage, broken off, refused."""
    client, document = make_client(ollama_url=double.url, max_body_bytes=2000)
    document, kind = closed(document), KINDS[path][0]

    def post(status, **fields):
        reply = client.post(path, json={**BODIES[path], **fields})
        described = resolved(document, document["paths"][path]["post"]["responses"][str(status)])
        assert reply.status_code == status and reply.mimetype in described["content"]
        for name, header in described["headers"].items():
            assert name in reply.headers or not resolved(document, header).get("required"), name
        return reply

    for fields in ({}, {}, {"logprobs": True} if "chat" in path else {"logprobs": 2}):
        validator(document, kind).validate(post(200, **fields).json)
    stream = post(200, stream=True, stream_options={"include_usage": True}).text
    *events, done, end = stream.split("\n\n")
    assert (done, end) == ("data: [DONE]", "") and len(events) >= 3
    for event in events:
        validator(document, f"{kind}Chunk").validate(json.loads(event.removeprefix("data: ")))
    for status, fields in ((400, {"n": 2}), (404, {"model": "gpt-4"}), (413, {"user": "x" * 3000})):
        validator(document, "OpenAIError").validate(post(status, **fields).json)
    double.fail("oom")
    validator(document, "OpenAIError").validate(post(502, seed=1).json)


def test_models_are_as_documented(double):
    """The list and one of it."""
    client, document = make_client(ollama_url=double.url)
    validator(closed(document), "OpenAIModelList").validate(client.get("/v1/models").json)
    validator(closed(document), "OpenAIModel").validate(client.get("/v1/models/llama3:8b").json)
