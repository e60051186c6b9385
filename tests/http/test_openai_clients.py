"""The official ``openai`` package, unmodified but for its base URL, on the double and on the embedded model."""

import asyncio
from typing import Literal

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel

from tests.embedded.conftest import COMMAND, address_of, process
from tests.support.double import answer_for
from tests.support.gunicorn_server import new_prompt, until

MODEL, ABLE = "llama3:8b", "able:1b"
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {
    "type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}}


class Colour(BaseModel):
    """A structured answer."""

    colour: Literal["red", "blue"]


@pytest.fixture(scope="module")
def served(shared_double, shared_serve):
    """The base URL of a service before the double."""
    server = shared_serve(shared_double, parallel=4, models=ABLE, timeout=2, api_keys="the-key")
    return f"{server.url}/v1"


@pytest.fixture
def double(shared_double, served):
    shared_double.reset()
    shared_double.set(slots=16)
    shared_double.add_model(ABLE, capabilities=("completion", "tools", "thinking"))
    with OpenAI(base_url=served, api_key="the-key") as client:
        until(lambda: {MODEL, ABLE} <= {model.id for model in client.models.list()})
    return shared_double


@pytest.fixture
def client(served, double):
    """A client as anybody would make it."""
    with OpenAI(base_url=served, api_key="the-key") as client:
        yield client


def ask(client, prompt, **fields):
    return client.chat.completions.create(**{
        "model": MODEL, "messages": [{"role": "user", "content": prompt}], **fields})


def text_of(chunks):
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


def in_a_loop(served, use):
    """The result of ``use(client)``, with the asynchronous client."""
    async def run():
        async with AsyncOpenAI(base_url=served, api_key="the-key") as client:
            return await use(client)
    return asyncio.run(run())


# On the double

def test_the_second_answer_is_the_first(client, double):
    """One call to Ollama; the same choice and counts under a new id."""
    prompt = new_prompt()
    raw = [client.chat.completions.with_raw_response.create(
        model=MODEL, messages=[{"role": "user", "content": prompt}]) for _ in range(2)]
    first, second = (reply.parse() for reply in raw)
    assert [reply.headers["cache-status"] for reply in raw] == ["llama-api; fwd=miss; stored", "llama-api; hit"]
    assert first.choices[0].message.content == answer_for(prompt) and first.choices == second.choices
    assert first.usage == second.usage and first.id != second.id and first._request_id
    assert double.generations[prompt] == 1


def test_a_stream_joins_to_the_plain_answer(client):
    """With its usage at the end, for the helper of the package too."""
    prompt = new_prompt()
    *chunks, usage = ask(client, prompt, stream=True, stream_options={"include_usage": True})
    assert text_of(chunks) == answer_for(prompt) and usage.usage.total_tokens > 0
    with client.chat.completions.stream(model=MODEL, messages=[{"role": "user", "content": prompt}]) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.content == answer_for(prompt) and final.choices[0].finish_reason == "stop"


def test_from_an_event_loop(served, double):
    """The asynchronous client gets the same: plain, streamed and listed."""
    prompt = new_prompt()

    async def use(client):
        plain = await ask(client, prompt)
        chunks = [chunk async for chunk in await ask(client, prompt, stream=True)]
        return plain.choices[0].message.content, text_of(chunks), [model.id async for model in client.models.list()]

    assert in_a_loop(served, use) == (answer_for(prompt), answer_for(prompt), [MODEL, ABLE])


def test_tools(client):
    """Plain and streamed calls are equal, and their results go back."""
    fields = {"model": ABLE, "messages": [{"role": "user", "content": new_prompt("[[tool=weather,weather]]")}],
              "tools": [TOOL]}
    message = client.chat.completions.create(**fields).choices[0].message
    with client.chat.completions.stream(**fields) as stream:
        streamed = stream.get_final_completion().choices[0]
    assert streamed.finish_reason == "tool_calls" and len(message.tool_calls) == 2
    assert [(call.id, call.function.arguments) for call in streamed.message.tool_calls] == [
        (call.id, call.function.arguments) for call in message.tool_calls]
    results = [{"role": "tool", "tool_call_id": call.id, "content": "Rain"} for call in message.tool_calls]
    after = client.chat.completions.create(**{**fields, "messages": [*fields["messages"], message, *results]})
    assert after.choices[0].finish_reason == "stop" and after.choices[0].message.content


def test_a_structured_answer(client):
    """It is parsed into the caller's own class; one that was cut is the package's own error."""
    fields = {"model": MODEL, "messages": [{"role": "user", "content": new_prompt()}], "response_format": Colour}
    assert client.chat.completions.parse(**fields).choices[0].message.parsed.colour in ("red", "blue")
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(**fields, max_tokens=1)


def test_completions_and_models(client):
    """The older endpoint, and the models one by one."""
    prompt = new_prompt("[[tokens=5]]")
    assert client.completions.create(model=MODEL, prompt=[prompt]).choices[0].text == answer_for(prompt)
    streamed = client.completions.create(model=MODEL, prompt=prompt, stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed) == answer_for(prompt)
    assert client.models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4")


@pytest.mark.parametrize("fields, kind, code, param", [
    ({"temperature": 3}, openai.BadRequestError, "invalid_value", "temperature"),
    ({"tools": [TOOL]}, openai.BadRequestError, "unsupported_parameter", "tools"),
    ({"extra_body": {"top_kk": 1}}, openai.BadRequestError, "unknown_parameter", "top_kk"),
    ({"prompt": "[[fault=too_long]]"}, openai.BadRequestError, "context_length_exceeded", None),
    ({"model": "gpt-4"}, openai.NotFoundError, "model_not_found", "model"),
    ({"prompt": "[[fault=oom]]"}, openai.InternalServerError, "ollama-error", None),
    ({"prompt": "[[fault=not_found]]"}, openai.InternalServerError, "model-not-found", None),
    ({"prompt": "[[fault=hang]]"}, openai.InternalServerError, "ollama-timeout", None)])
@pytest.mark.parametrize("stream", [False, True])
def test_an_error_is_its_exception(client, fields, kind, code, param, stream):
    """With OpenAI's code and the field, also where a stream was asked for."""
    prompt = new_prompt(fields.get("prompt", ""))
    with pytest.raises(kind) as raised:
        ask(client.with_options(max_retries=0), prompt, stream=stream,
            **{name: value for name, value in fields.items() if name != "prompt"})
    assert type(raised.value) is kind and (raised.value.code, raised.value.param) == (code, param)
    if code == "context_length_exceeded":
        assert code in str(raised.value) and "maximum context length is 8192 tokens" in str(raised.value)


def test_who_may_not_call(served, serve, double):
    """A wrong key, too many calls, and no server."""
    with OpenAI(base_url=served, api_key="wrong") as client, pytest.raises(openai.AuthenticationError):
        client.models.list()
    limited = serve(double, rate_limit="1/hour")
    with OpenAI(base_url=f"{limited.url}/v1", api_key="any", max_retries=0) as client:
        client.models.list()
        with pytest.raises(openai.RateLimitError):
            client.models.list()
    with OpenAI(base_url="http://127.0.0.1:1/v1", api_key="any", max_retries=0) as client:
        with pytest.raises(openai.APIConnectionError):
            client.models.list()


def test_a_failure_in_a_stream_is_raised(client):
    """The text so far, then an error; never a short answer that looks whole."""
    chunks = []
    with pytest.raises(openai.APIError) as raised:
        for chunk in ask(client, new_prompt("[[fault=eof]]"), stream=True):
            chunks.append(chunk)
    assert type(raised.value) is openai.APIError and raised.value.code == "ollama-error" and text_of(chunks)


@pytest.mark.parametrize("fault, calls", [("oom", 3), ("bad_request", 1), ("not_found", 1), ("hang", 1)])
def test_the_package_tries_again_where_it_helps(client, double, fault, calls):
    """A crash is tried three times; what would fail again, or cost minutes, is not."""
    prompt = new_prompt(f"[[fault={fault}]]")
    with pytest.raises(openai.InternalServerError):
        ask(client, prompt)
    assert double.generations[prompt] == calls


def test_a_stream_that_is_left_stops_ollama(client, served, double):
    """The generation ends when the caller closes it, from an event loop too."""
    fields = {"stream": True}
    with ask(client, new_prompt("[[gap=0.2]] [[tokens=100]]"), **fields) as stream:
        next(iter(stream))
    double.wait(5, running=0, closed_early=1)

    async def leave(client):
        async with await ask(client, new_prompt("[[gap=0.2]] [[tokens=100]]"), **fields) as stream:
            await anext(aiter(stream))

    in_a_loop(served, leave)
    double.wait(5, running=0, closed_early=2)


def test_a_base_url_with_a_slash_too_many(served, double):
    """The redirect keeps method and body."""
    prompt = new_prompt()
    with OpenAI(base_url=served.replace("/v1", "/v1//"), api_key="the-key") as client:
        assert ask(client, prompt).choices[0].message.content == answer_for(prompt)


# On the embedded model

@pytest.fixture(scope="module")
def embedded(serve):
    """The base URL of a service before the real model."""
    pytest.importorskip("xllamacpp", reason="requirements-embedded.txt is not installed")
    with process(*COMMAND) as started:
        yield f"{serve(ollama_url='http://' + address_of(started), model='smollm2:135m').url}/v1"


def test_the_real_model_answers(embedded):
    """Plain, streamed, structured, and refused; the second answer is a hit."""
    with OpenAI(base_url=embedded, api_key="any") as client:
        model, = [model.id for model in client.models.list()]
        fields = {"model": model, "max_tokens": 8, "temperature": 0}
        plain, again = (ask(client, "Who are you?", **fields) for _ in range(2))
        assert plain.choices == again.choices and plain.choices[0].finish_reason == "length"
        assert plain.usage.completion_tokens == 8
        assert text_of(ask(client, "Who are you?", stream=True, **fields)) == plain.choices[0].message.content != ""
        parsed = client.chat.completions.parse(
            model=model, messages=[{"role": "user", "content": "A colour, as JSON"}], response_format=Colour,
            max_tokens=60, temperature=0).choices[0].message.parsed
        assert parsed.colour in ("red", "blue")
        with pytest.raises(openai.BadRequestError, match="does not support tools"):
            ask(client, "Hi", model=model, tools=[TOOL])
