"""The official ``ollama`` package with nothing changed but its host: on the double and on a real model."""

import asyncio
import json
import subprocess
import sys

import ollama
import pytest

from tests.support.double import answer_for, pieces_for
from tests.support.double.vectors import vector_for
from tests.support.gunicorn_server import new_prompt, until

MODEL = "gpt-4o-mini"  # an alias of llama3:8b
HELPER = "helper:1b"


def weather(city: str) -> str:
    """Return the weather.

    Args:
        city: where
    """
    return f"Rain in {city}"


@pytest.fixture(scope="module")
def server(shared_double, shared_serve):
    return shared_serve(shared_double, models=HELPER, model_aliases=f"{MODEL}=llama3:8b")


@pytest.fixture
def double(double):
    double.set_model(HELPER, digest="b" * 64, capabilities=["completion", "tools", "thinking"])
    return double


@pytest.fixture
def client(server, double):
    with ollama.Client(server.url) as client:
        yield client


def asked(prompt):
    return [{"role": "user", "content": prompt}]


def test_a_prompt_and_its_repetition(client, double):
    """The second is a hit and says the same."""
    prompt = new_prompt()
    first, second = (client.generate(MODEL, prompt, options={"seed": 1}) for _ in range(2))
    assert first.response == second.response == answer_for(prompt) and first.model == MODEL
    assert (first.done_reason, first.eval_count, first.context) == (
        second.done_reason, second.eval_count, second.context)
    assert first.eval_duration and second.eval_duration is None and second.load_duration == 0
    assert double.generations[prompt] == 1


def test_a_chat_and_its_stream(client, double):
    """Plain, streamed, and the stream of a hit."""
    prompt = new_prompt()
    streamed = list(client.chat(MODEL, asked(prompt), stream=True))
    assert [part.message.content for part in streamed[:-1]] == list(pieces_for(asked(prompt))[0])
    plain = client.chat(MODEL, asked(prompt))
    again = list(client.chat(MODEL, asked(prompt), stream=True))
    assert plain.message.content == "".join(part.message.content for part in again) == answer_for(asked(prompt))
    assert again[-1].done and again[-1].eval_count == streamed[-1].eval_count
    assert double.generations[prompt] == 1


def test_a_tool_is_called_and_told_what_came_of_it(client, double):
    """The package makes the schema of a function, and takes the call out of the answer."""
    double.set(tool="weather")
    messages = asked(new_prompt())
    answer = client.chat(HELPER, messages, tools=[weather], think=True)
    call, = answer.message.tool_calls
    assert (call.function.name, list(call.function.arguments)) == ("weather", ["city"]) and answer.message.thinking
    messages += [answer.message, {"role": "tool", "content": "Rain", "tool_name": "weather"}]
    double.set(tool="")
    assert client.chat(HELPER, messages).message.content


def test_a_structured_answer(client):
    """The schema binds it."""
    schema = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}
    answer = client.generate(MODEL, new_prompt(), format=schema)
    assert isinstance(json.loads(answer.response)["age"], int)


def test_embeddings(client, double):
    """One text, several, the old form; the second time a hit that is equal."""
    double.set_model(HELPER, capabilities=["embedding"], embedding_length=8)
    texts = [new_prompt(), new_prompt()]
    first, second = client.embed(HELPER, texts), client.embed(HELPER, texts)
    assert [list(vector) for vector in first.embeddings] == [vector_for(HELPER, text, length=8) for text in texts]
    assert first.embeddings == second.embeddings and first.prompt_eval_count == second.prompt_eval_count
    assert client.embed(HELPER, texts[0]).embeddings[0] == first.embeddings[0] and double.embedded[texts[0]] == 1
    assert len(client.embeddings(HELPER, texts[0]).embedding) == 8


def test_the_inventory(client, double):
    """The package's own models parse the answers."""
    until(lambda: {model.model for model in client.list().models} == {"llama3:8b", MODEL, HELPER})
    shown = client.show(MODEL)
    assert shown.capabilities == ["completion"] and shown.modelinfo["llama.context_length"] == 8192
    assert client.generate(MODEL).done_reason == "load"
    running, = client.ps().models
    assert (running.model, running.context_length) == ("llama3:8b", 8192)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fields, status, text", [
    ({"model": "nope"}, 404, "model 'nope' not found"),
    ({"think": True}, 400, '"llama3:8b" does not support thinking'),
    ({"options": {"seed": "x"}}, 400, 'option "seed" must be of type integer'),
    ({"options": {"num_ctx": 9000}}, 400, "num_ctx 9000 is above the context window in force, 8192 tokens"),
    ({"messages": asked("[[fault=busy]]")}, 503, "Ollama is busy"),
    ({"messages": asked("[[fault=oom]]")}, 502, "Ollama refused or failed to generate")])
def test_an_error_is_its_exception(client, fields, status, text, stream):
    """With status and text, also where a stream was asked for."""
    with pytest.raises(ollama.ResponseError) as raised:
        list(client.chat(**{"model": MODEL, "messages": asked(new_prompt()), "stream": stream} | fields))
    assert raised.value.status_code == status and text in raised.value.error


def test_a_stream_that_breaks_is_an_exception(client):
    """After the pieces that came."""
    pieces = []
    with pytest.raises(ollama.ResponseError, match="Ollama"):
        for part in client.chat(MODEL, asked(f"[[fault=error_line]] {new_prompt()}"), stream=True):
            pieces.append(part)
    assert pieces


@pytest.mark.parametrize("change", [
    lambda client: client.pull("x"), lambda client: client.delete("llama3:8b"), lambda client: client.copy("a", "b"),
    lambda client: client.push("x"), lambda client: client.create("x", from_="llama3:8b"),
    lambda client: client.create_blob(__file__)])
def test_what_would_change_ollama_is_an_exception(client, change):
    """403, with what was asked for."""
    with pytest.raises(ollama.ResponseError, match="would change the Ollama server") as raised:
        change(client)
    assert raised.value.status_code == 403


def test_a_stream_that_is_left_stops_ollama(client, double):
    """Closing the generator closes the connection."""
    stream = client.generate(MODEL, new_prompt("[[gap=0.2]] [[tokens=100]]"), stream=True)
    next(stream)
    assert double.running == 1
    stream.close()
    until(lambda: double.running == 0 and double.closed_early == 1, what="the end of the generation")


def test_an_event_loop_asks_many_at_once(server, double):
    """One generation for all callers of the same, plain and streamed."""
    prompt = new_prompt("[[ttft=0.3]]")

    async def ask():
        async with ollama.AsyncClient(server.url) as client:
            async def stream():
                parts = await client.chat(MODEL, asked(prompt), stream=True)
                return "".join([part.message.content async for part in parts])

            async def plain():
                return (await client.chat(MODEL, asked(prompt))).message.content

            return await asyncio.gather(*(one() for one in [stream, plain] * 4))

    assert set(asyncio.run(ask())) == {answer_for(asked(prompt))} and double.generations[prompt] == 1


def test_a_real_model(serve):
    """The embedded one: a chat, its stream from the cache, a conversation by context, and what it cannot do."""
    pytest.importorskip("xllamacpp", reason="requirements-embedded.txt is not installed")
    command = [sys.executable, "-m", "llama_api.embedded", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            url, name = process.stdout.readline().split()[0], "smollm2:135m"
            with ollama.Client(serve(ollama_url=url, model=name).url) as client:
                short = {"temperature": 0, "num_predict": 8}
                plain = client.chat(name, asked("Who are you?"), options=short)
                parts = list(client.chat(name, asked("Who are you?"), options=short, stream=True))
                assert "".join(part.message.content for part in parts) == plain.message.content != ""
                assert parts[-1].load_duration == 0 and parts[-1].eval_count == plain.eval_count == 8
                first = client.generate(name, "My name is Jo.", options=short)
                second = client.generate(name, "What is my name?", context=first.context, options=short)
                assert second.context[:len(first.context)] == first.context
                vectors = client.embed(name, ["hello", "world", "hello"]).embeddings
                with ollama.Client(url) as direct:
                    assert vectors == direct.embed(name, ["hello", "world", "hello"]).embeddings
                with pytest.raises(ollama.ResponseError, match="does not support thinking"):
                    client.chat(name, asked("Hi"), think=True)
        finally:
            process.kill()
