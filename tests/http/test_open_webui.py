"""The calls that Open WebUI makes (its routers ``ollama`` and ``openai``, 0.12), by both of its kinds of connection."""

import json
from datetime import datetime

import pytest

from tests.support.double import answer_for
from tests.support.gunicorn_server import JSON, new_prompt, until

MODEL, EMBEDDER = "llama3:8b", "embedder:1b"
USER = {**JSON, "Authorization": "Bearer the-key", "X-OpenWebUI-User-Name": "Jo%20Doe", "X-OpenWebUI-User-Id": "1",
        "X-OpenWebUI-User-Email": "jo@example.org", "X-OpenWebUI-User-Role": "user", "X-OpenWebUI-Chat-Id": "c1"}
PARAMS = {"temperature": 0.8, "top_p": 0.9, "seed": 42, "mirostat": 0, "mirostat_eta": 0.1, "mirostat_tau": 5.0,
          "num_keep": 24, "num_predict": 128, "repeat_last_n": 64, "top_k": 40, "min_p": 0.0, "repeat_penalty": 1.1,
          "presence_penalty": 0.1, "frequency_penalty": 0.1}
OF_THE_LOAD = {"num_ctx": 2048, "num_batch": 512, "num_gpu": 99, "num_thread": 8, "use_mmap": True, "use_mlock": False}


@pytest.fixture(scope="module")
def server(shared_double, shared_serve):
    return shared_serve(shared_double, models=EMBEDDER, api_keys="the-key", max_tokens_limit=2000)


@pytest.fixture
def double(double):
    double.set_model(EMBEDDER, digest="b" * 64, capabilities=["embedding"], embedding_length=8)
    return double


def ask(api, path, body=None):
    """The body of what a call is answered with; Open WebUI reads it as JSON whatever it is."""
    data = None if body is None else json.dumps(body)
    reply = api.request("GET" if body is None else "POST", path, data, USER)
    assert reply.status == 200, reply.body
    return reply


def listed(api, path, members, name):
    """Wait until the service has seen both models; return their names in order."""
    return until(lambda: len(found := sorted(one[name] for one in ask(api, path).json[members])) == 2 and found)


def test_a_connection_to_ollama(api, double):
    """It is verified, lists its models, chats with every parameter set, names the chat, embeds, and unloads nothing."""
    assert ask(api, "/api/version").json["version"]
    assert listed(api, "/api/tags", "models", "model") == [EMBEDDER, MODEL]
    prompt = new_prompt()
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": prompt}]
    reply = ask(api, "/api/chat", {
        "model": MODEL, "messages": messages, "stream": True, "think": False, "keep_alive": "5m", "system": "Be kind.",
        "options": {**PARAMS, **OF_THE_LOAD, "stop": ["\n\n\n"], "new_topic_penalty": 1}})
    *pieces, last = [json.loads(line) for line in reply.body.splitlines()]
    assert reply.headers["Content-Type"] == "application/x-ndjson" and last["done"] and last["eval_count"] > 0
    assert "".join(piece["message"]["content"] for piece in pieces) == answer_for(messages)
    sent = double.calls("/api/chat")[-1].json
    assert sent["messages"] == messages and sent["options"].items() >= PARAMS.items()
    assert sent["options"].keys().isdisjoint(OF_THE_LOAD) and sent["options"]["stop"][-1] == "\n\n\n"
    loaded, = ask(api, "/api/ps").json["models"]
    assert loaded["name"] == MODEL and datetime.fromisoformat(loaded["expires_at"])
    title = {"model": MODEL, "messages": messages, "stream": False, "options": {"num_predict": 1000}}
    assert ask(api, "/api/chat", title).json["message"]["content"]
    embedded = ask(api, "/api/embed", {"model": EMBEDDER, "input": ["a", "b"], "truncate": True}).json
    assert [len(vector) for vector in embedded["embeddings"]] == [8, 8]
    assert ask(api, "/api/generate", {"model": MODEL, "prompt": "", "keep_alive": 0}).json["done"]
    assert ask(api, "/api/ps").json["models"][0]["name"] == MODEL


def test_a_connection_to_openai(api, double):
    """It is verified by its list of models, and chats, names the chat and embeds in OpenAI's form."""
    assert listed(api, "/v1/models", "data", "id") == [EMBEDDER, MODEL]
    prompt = new_prompt()
    chat = {"model": MODEL, "messages": [{"role": "user", "content": prompt}]}
    reply = ask(api, "/v1/chat/completions", {
        **chat, "stream": True, "stream_options": {"include_usage": True}, "temperature": 0.8, "top_p": 0.9,
        "min_p": 0.0, "max_tokens": 128, "frequency_penalty": 0.1, "presence_penalty": 0.1, "seed": 42,
        "stop": ["\n\n\n"], "logit_bias": {}, "reasoning_effort": "none", "response_format": {"type": "text"}})
    assert "text/event-stream" in reply.headers["Content-Type"]
    lines = [line.removeprefix("data: ") for line in reply.body.decode().splitlines() if line]
    *chunks, usage = [json.loads(line) for line in lines[:-1]]
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert lines[-1] == "[DONE]" and text == answer_for(chat["messages"]) and usage["usage"]["total_tokens"] > 0
    title = ask(api, "/v1/chat/completions", {**chat, "stream": False, "max_tokens": 1000})
    assert title.json["choices"][0]["message"]["content"]
    vectors = ask(api, "/v1/embeddings", {"model": EMBEDDER, "input": ["a", "b"]}).json["data"]
    assert [len(vector["embedding"]) for vector in vectors] == [8, 8]
    refused = api.request("POST", "/v1/chat/completions", json.dumps({**chat, "model": "gone"}), USER)
    assert refused.status == 404 and refused.json["error"]["message"]
