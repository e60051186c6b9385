"""The official ``ollama`` package on the embedded Ollama: its answers, streams and exceptions."""

import asyncio

import ollama
import pytest

from tests.embedded.conftest import MODEL

MESSAGES = [{"role": "user", "content": "Who are you?"}]
SHORT = {"temperature": 0, "num_predict": 8}


@pytest.fixture
def client(server):
    """A client of the package."""
    with ollama.Client(f"http://{server}") as client:
        yield client


def test_a_chat_and_its_stream(client):
    """The pieces join to the answer."""
    plain = client.chat(MODEL, MESSAGES, options=SHORT)
    pieces = list(client.chat(MODEL, MESSAGES, options=SHORT, stream=True))
    assert plain.message.role == "assistant"
    assert "".join(piece.message.content for piece in pieces) == plain.message.content != ""
    assert (plain.done_reason, pieces[-1].eval_count) == ("length", 8)


def test_a_chat_from_an_event_loop(server):
    """The asynchronous client gets the same."""
    async def ask():
        async with ollama.AsyncClient(f"http://{server}") as client:
            plain = await client.chat(MODEL, MESSAGES, options=SHORT)
            stream = await client.chat(MODEL, MESSAGES, options=SHORT, stream=True)
            return plain.message.content, "".join([piece.message.content async for piece in stream])
    plain, streamed = asyncio.run(ask())
    assert plain == streamed != ""


def test_a_conversation_by_context(client):
    """/api/generate accepts its own context."""
    first = client.generate(MODEL, "My name is Jo.", options=SHORT)
    second = client.generate(MODEL, "What is my name?", context=first.context, options=SHORT)
    assert second.context[:len(first.context)] == first.context
    assert second.prompt_eval_count > first.prompt_eval_count


def test_a_structured_answer(client):
    """A schema binds it."""
    schema = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}
    answer = client.chat(MODEL, MESSAGES, format=schema, options=SHORT | {"num_predict": 40})
    assert answer.message.content.startswith("{")


def test_embeddings(client):
    """Both forms."""
    assert client.embed(MODEL, "hello").embeddings[0] == client.embeddings(MODEL, "hello").embedding


def test_the_inventory(client):
    """The package's own models parse the answers."""
    shown = client.show(MODEL)
    assert (shown.capabilities, shown.details.family) == (["completion", "embedding"], "smollm2")
    assert shown.modelinfo["smollm2.context_length"] == 8192
    tag, = client.list().models
    client.generate(MODEL)
    running, = client.ps().models
    assert (tag.model, running.model, running.digest) == (MODEL, MODEL, tag.digest)
    assert (running.context_length, running.size_vram) == (4096, 0)


@pytest.mark.parametrize("fields, status, text", [
    ({"model": "nope"}, 404, "model 'nope' not found"),
    ({"think": True}, 400, f'"{MODEL}" does not support thinking'),
    ({"tools": [{"type": "function", "function": {"name": "f"}}]}, 400,
     f"registry.ollama.ai/library/{MODEL} does not support tools"),
    ({"options": {"seed": "x"}}, 500, 'option "seed" must be of type integer')])
@pytest.mark.parametrize("stream", [False, True])
def test_an_error_is_its_exception(client, fields, status, text, stream):
    """With status and text, also where a stream was asked for."""
    with pytest.raises(ollama.ResponseError) as raised:
        list(client.chat(**{"model": MODEL, "messages": MESSAGES, "stream": stream} | fields))
    assert (raised.value.status_code, raised.value.error) == (status, text)
