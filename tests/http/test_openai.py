"""OpenAI's API from outside, over sockets: what goes to Ollama, what comes back, how it fails."""

import base64
import json

import pytest

from tests.support.double import OllamaDouble, answer_for, pieces_for
from tests.support.gunicorn_server import JSON, new_prompt, together, until

CHAT, COMPLETIONS, MODELS = "/v1/chat/completions", "/v1/completions", "/v1/models"
EMBEDDINGS = "/v1/embeddings"
MODEL, ABLE = "llama3:8b", "able:1b"
ABILITIES = ("completion", "tools", "vision", "thinking", "insert")
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {
    "type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}}
KEY = {"Authorization": "Bearer first-key"}


@pytest.fixture(scope="module")
def server(shared_double, shared_serve):
    return shared_serve(shared_double, parallel=4, models=ABLE, model_aliases=f"gpt-4o-mini={MODEL}", timeout=2,
                        heartbeat=0.3, max_body_bytes=5000)


@pytest.fixture
def double(double):
    double.set(slots=16)
    double.add_model(ABLE, capabilities=ABILITIES)
    return double


@pytest.fixture
def api(server, double):
    until(lambda: {MODEL, ABLE} <= {model["id"] for model in server.get(MODELS).json["data"]})
    return server


def post(api, path, body, headers=()):
    return api.request("POST", path, json.dumps(body), {**JSON, **dict(headers)})


def chat(api, prompt, headers=(), **fields):
    return post(api, CHAT, {"model": MODEL, "messages": [{"role": "user", "content": prompt}], **fields}, headers)


def error_of(reply):
    """The status and the error of a reply, whose shape must be OpenAI's."""
    assert reply.headers["Content-Type"] == "application/json" and reply.headers["X-Request-ID"]
    assert reply.json.keys() == {"error"} and reply.json["error"].keys() == {"message", "type", "param", "code"}
    return reply.status, reply.json["error"]


def code_of(reply):
    status, error = error_of(reply)
    return status, error["code"]


def chunks_of(reply):
    """The chunks of a stream that ended as it should."""
    *chunks, done = reply.body.decode().split("\n\n")[:-1]
    assert done == "data: [DONE]"
    return [json.loads(chunk.removeprefix("data: ")) for chunk in chunks if not chunk.startswith(":")]


def text_of(reply):
    return "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks_of(reply))


# Answers

def test_a_chat_is_asked_natively_and_cached(api, double):
    """/api/chat gets the effective options and no truncation; the second answer is the first, with an id of its own."""
    prompt = new_prompt()
    first, second = chat(api, prompt, max_tokens=50), chat(api, prompt, max_completion_tokens=50, user="me")
    assert (first.status, first.cache, second.cache) == (200, "llama-api; fwd=miss; stored", "llama-api; hit")
    assert first.headers["Content-Type"] == "application/json" and second.headers["Age"] == "0"
    call, = double.calls("/api/chat")
    assert call.json == {
        "model": MODEL, "messages": [{"role": "user", "content": prompt}], "stream": True, "truncate": False,
        "options": {"num_predict": 50, "temperature": 1.0, "top_p": 1.0, "frequency_penalty": 0.0,
                    "presence_penalty": 0.0}}
    one, two = first.json, second.json
    assert one["choices"] == two["choices"] and one["choices"][0]["message"]["content"] == answer_for(prompt)
    assert one["usage"] == two["usage"] and one["usage"]["total_tokens"] > 0
    assert one["id"] != two["id"] and one["system_fingerprint"].startswith("fp_")


def test_a_stream_has_openais_grammar(api):
    """Role, pieces, reason, usage and the end; a hit is streamed in the same way."""
    prompt, fields = new_prompt(), {"stream": True, "stream_options": {"include_usage": True}}
    for cache in ("llama-api; fwd=miss", "llama-api; hit"):
        reply = chat(api, prompt, **fields)
        assert reply.headers["Content-Type"] == "text/event-stream; charset=utf-8" and reply.cache == cache
        assert reply.headers["Cache-Control"] == "no-store" and reply.headers["X-Accel-Buffering"] == "no"
        role, *pieces, last, usage = chunks_of(reply)
        assert role["choices"][0]["delta"] == {"role": "assistant", "content": ""}
        assert "".join(piece["choices"][0]["delta"]["content"] for piece in pieces) == answer_for(prompt)
        assert last["choices"][0] == {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}
        assert usage["choices"] == [] and usage["usage"]["completion_tokens"] > 0
        assert all(chunk["usage"] is None for chunk in (role, *pieces, last))
        assert len({(chunk["id"], chunk["created"], chunk["system_fingerprint"]) for chunk in chunks_of(reply)}) == 1
    assert text_of(chat(api, prompt, stream=True)) == chat(api, prompt).json["choices"][0]["message"]["content"]


def test_readers_of_one_flight_each_in_its_own_form(api, double):
    """Plain and streaming callers of OpenAI's and of Ollama's API with the same question are one call to Ollama."""
    prompt = new_prompt("[[ttft=1.2]]")
    native = {"model": MODEL, "messages": [{"role": "user", "content": prompt}], "truncate": False, "options": {
        "num_predict": 8192, "temperature": 1, "top_p": 1, "frequency_penalty": 0, "presence_penalty": 0}}
    with api.open("POST", "/api/chat", json.dumps(native), JSON) as first:
        double.wait(running=1)
        streamed, plain, other = together(3, lambda n: chat(api, prompt, stream=n == 0) if n < 2 else
                                          post(api, "/api/chat", {**native, "stream": False}))
        lines = first.read().splitlines()
    assert double.generations[prompt] == 1
    assert {reply.cache for reply in (streamed, plain, other)} == {"llama-api; fwd=miss; collapsed"}
    assert text_of(streamed) == plain.json["choices"][0]["message"]["content"] == answer_for(prompt)
    assert other.json["message"]["content"] == answer_for(prompt)
    assert "".join(json.loads(line)["message"]["content"] for line in lines) == answer_for(prompt)


def test_a_completion(api, double):
    """It is /api/generate with 16 tokens; LangChain's list of one prompt is the same request."""
    prompt = new_prompt("[[tokens=30]]")
    first = post(api, COMPLETIONS, {"model": MODEL, "prompt": prompt})
    choice = first.json["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("".join(pieces_for(prompt, n=16)[0]), "length")
    assert first.json["object"] == "text_completion"
    stream = post(api, COMPLETIONS, {"model": MODEL, "prompt": [prompt], "max_tokens": 16, "stream": True,
                                     "stream_options": {"include_usage": True}})
    assert stream.cache == "llama-api; hit"
    *chunks, usage = chunks_of(stream)
    assert (usage["choices"], usage["usage"]) == ([], first.json["usage"])
    assert all(chunk["usage"] is None for chunk in chunks)
    *pieces, last = [chunk["choices"][0] for chunk in chunks]
    assert "".join(piece["text"] for piece in pieces) == choice["text"]
    assert (last["text"], last["finish_reason"]) == ("", "length")
    assert double.calls("/api/generate")[-1].json["options"]["num_predict"] == 16


def test_tools_and_what_they_said(api, double):
    """Calls come with arguments as text and go back as objects; a stream has each call in one piece."""
    prompt = new_prompt("[[tool=weather,weather]]")
    plain, stream = (chat(api, prompt, model=ABLE, tools=[TOOL], stream=stream) for stream in (False, True))
    choice = plain.json["choices"][0]
    message = choice["message"]
    assert (choice["finish_reason"], message["content"]) == ("tool_calls", None)
    assert all(json.loads(call["function"]["arguments"])["city"] for call in message["tool_calls"])
    deltas = [call for chunk in chunks_of(stream) for call in chunk["choices"][0]["delta"].get("tool_calls", ())]
    assert deltas == [{"index": index, **call} for index, call in enumerate(message["tool_calls"])]
    results = [{"role": "tool", "tool_call_id": call["id"], "content": "Rain"} for call in message["tool_calls"]]
    question = {"role": "user", "content": prompt}
    after = post(api, CHAT, {"model": ABLE, "messages": [question, message, *results], "tools": [TOOL]})
    assert after.json["choices"][0]["finish_reason"] == "stop"
    sent = double.calls("/api/chat")[-1].json["messages"]
    assert [call["function"] for call in sent[1]["tool_calls"]] == [
        {"name": "weather", "arguments": json.loads(call["function"]["arguments"])} for call in message["tool_calls"]]
    assert sent[2] == {"role": "tool", "content": "Rain", "tool_name": "weather",
                       "tool_call_id": message["tool_calls"][0]["id"]}


def test_thinking_images_formats_and_logprobs(api, double):
    """Each goes to Ollama in its native place, and back in OpenAI's."""
    image = base64.b64encode(b"not really").decode()
    content = [{"type": "text", "text": new_prompt()},
               {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{image}"}}]
    schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    reply = post(api, CHAT, {
        "model": ABLE, "messages": [{"role": "user", "content": content}], "reasoning_effort": "low", "logprobs": True,
        "top_logprobs": 1, "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}})
    choice = reply.json["choices"][0]
    assert choice["message"]["reasoning"] and json.loads(choice["message"]["content"])["city"]
    assert choice["logprobs"]["content"][0]["top_logprobs"][0].keys() == {"token", "logprob", "bytes"}
    sent = double.calls("/api/chat")[-1].json
    assert (sent["think"], sent["format"], sent["top_logprobs"]) == ("low", schema, 1)
    assert sent["messages"][0] == {"role": "user", "content": content[0]["text"], "images": [image]}


def test_a_model_is_listed_and_told_under_any_of_its_names(api):
    """Aliases too; a model that Ollama lacks is not listed."""
    listed = api.get(MODELS)
    assert listed.json["object"] == "list" and [model["id"] for model in listed.json["data"]] == [
        MODEL, ABLE, "gpt-4o-mini"]
    for model in listed.json["data"]:
        assert (model["object"], model["owned_by"], type(model["created"])) == ("model", "library", int)
    for name, found in ((MODEL, MODEL), ("LLAMA3%3A8b", MODEL), ("library%2Fllama3:8b", MODEL), ("gpt-4o-mini",) * 2):
        assert api.get(f"{MODELS}/{name}?x=y").json["id"] == found
    assert api.request("HEAD", MODELS).status == api.request("HEAD", f"{MODELS}/{MODEL}").status == 200
    for name in ("gpt-4", "a/b/c", "llama3", "%00", "x" * 300):
        assert code_of(api.get(f"{MODELS}/{name}")) == (404, "model_not_found")
    assert chat(api, new_prompt(), model="gpt-4o-mini").json["model"] == MODEL


def test_no_model_is_an_empty_list(serve):
    """Never null; and while Ollama is away the configured names stand."""
    with OllamaDouble() as double:
        double.remove_model(MODEL)
        api = serve(double)
        until(lambda: api.get(MODELS).json == {"object": "list", "data": []})
        status, error = error_of(api.get(f"{MODELS}/{MODEL}"))
        assert (status, error["code"], error["message"]) == (
            404, "model_not_found", f"Ollama does not have the model {MODEL}; run `ollama pull {MODEL}` on its host.")
    until(lambda: [model["id"] for model in api.get(MODELS).json["data"]] == [MODEL])


# Refusals and failures

def test_what_the_model_cannot_do_is_refused_at_once(api, double):
    """One look at what it can do, and no load."""
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    looks = len(double.calls("/api/show"))
    for fields, param, words in (
            ({"tools": [TOOL]}, "tools", "does not support tools"),
            ({"reasoning_effort": "low"}, "reasoning_effort", "does not support thinking"),
            ({"messages": [{"role": "user", "content": [image]}]}, "messages[0].content[0].image_url",
             "does not support vision")):
        for stream in (False, True):
            status, error = error_of(chat(api, new_prompt(), stream=stream, **fields))
            assert (status, error["param"]) == (400, param) and words in error["message"]
    assert error_of(post(api, COMPLETIONS, {"model": MODEL, "prompt": "x", "suffix": "y"}))[1]["param"] == "suffix"
    assert len(double.calls("/api/show")) <= looks + 1
    assert not double.calls("/api/chat") and not double.calls("/api/generate") and double.loads == 0


def test_what_ollama_does_not_tell_is_left_to_it(api, double):
    """Unknown is not "no": an old Ollama is asked, and its refusal is reported for the field."""
    double.set_digest(MODEL, tells=False)
    double.set_digest(ABLE, tells=False, capabilities=(*ABILITIES, "embedding"))
    until(lambda: api.get(f"{MODELS}/{MODEL}").status == api.get(f"{MODELS}/{ABLE}").status == 200)
    prompt = {"model": MODEL, "prompt": new_prompt()}
    able = [chat(api, new_prompt(), model=ABLE, tools=[TOOL]),
            chat(api, new_prompt(), model=ABLE, reasoning_effort="low"),
            post(api, COMPLETIONS, {**prompt, "model": ABLE, "suffix": "y"}),
            post(api, EMBEDDINGS, {"model": ABLE, "input": new_prompt()})]
    assert [reply.status for reply in able] == [200] * 4
    for reply, param, code in (
            (chat(api, new_prompt(), tools=[TOOL]), "tools", "unsupported_parameter"),
            (chat(api, new_prompt(), reasoning_effort="low"), "reasoning_effort", "unsupported_parameter"),
            (post(api, COMPLETIONS, {**prompt, "suffix": "y"}), "suffix", "unsupported_parameter"),
            (post(api, EMBEDDINGS, {"model": MODEL, "input": new_prompt()}), "model", "unsupported_value")):
        status, error = error_of(reply)
        assert (status, error["param"], error["code"]) == (400, param, code) and "does not support" in error["message"]


@pytest.mark.parametrize("fault, status, code, retried", [
    ("too_long", 400, "context_length_exceeded", None), ("oom", 502, "ollama-error", None),
    ("bad_request", 502, "ollama-error", "false"), ("reset", 502, "ollama-error", None),
    ("busy", 503, "overloaded", "true"), ("not_found", 503, "model-not-found", "false"),
    ("hang", 504, "ollama-timeout", "false")])
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_a_failure_of_ollama_has_its_status_and_body(api, path, fault, status, code, retried):
    """Nothing of it is stored; headers say whether to retry, and when if within a minute."""
    text = new_prompt(f"[[fault={fault}]]")
    body = {"model": MODEL, "prompt": text} if path == COMPLETIONS else {
        "model": MODEL, "messages": [{"role": "user", "content": text}]}
    reply = post(api, path, body)
    assert code_of(reply) == (status, code) and reply.headers["x-should-retry"] == retried
    assert status != 503 or 1 <= int(reply.headers["Retry-After"]) <= 59
    assert code_of(post(api, path, body, {"Cache-Control": "only-if-cached"})) == (504, "not-cached")


def test_a_failure_in_a_stream_is_an_error_object(api):
    """After the first piece, and after a first sign of life; there is no reason, no usage and no [DONE]."""
    broken = chat(api, new_prompt("[[fault=eof]]"), stream=True)
    *pieces, error = broken.body.decode().split("\n\n")[:-1]
    assert broken.status == 200 and len(pieces) == 3 and '"finish_reason":"' not in broken.body.decode()
    assert json.loads(error.removeprefix("data: "))["error"]["code"] == "ollama-error"
    late = chat(api, new_prompt("[[fault=hang]]"), stream=True)
    waiting, *_, error = late.body.decode().split("\n\n")[:-1]
    assert late.status == 200 and waiting.startswith(": waiting")
    assert json.loads(error.removeprefix("data: "))["error"]["code"] == "ollama-timeout"


def test_a_waiting_caller_hears_that_it_waits(api):
    """A comment for each silence, before the role."""
    reply = chat(api, new_prompt("[[ttft=0.8]]"), stream=True)
    assert reply.body.startswith(b": waiting") and text_of(reply)


def test_a_client_that_leaves_stops_ollama(api, double):
    """The generation ends within seconds."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": new_prompt("[[gap=0.2]] [[tokens=100]]")}]}
    with api.open("POST", CHAT, json.dumps({**body, "stream": True}), JSON) as stream:
        assert stream.head.readline().startswith(b"data: ")
    double.wait(5, running=0, closed_early=1)


@pytest.mark.parametrize("body, code", [
    (b"{", "invalid_json"), (b"[]", "invalid_json"), (b"", "invalid_json"), (b"\xff", "invalid_json"),
    (b'{"model": "a", "model": "b"}', "invalid_json"), (b'{"model": NaN}', "invalid_json"),
    (b'{"messages": []}', "missing_required_parameter"), (b'{"model": "llama3:8b", "messages": 5}', "invalid_type")])
def test_a_wrong_body(api, body, code):
    """A 400 that says what is wrong with it."""
    assert code_of(api.request("POST", CHAT, body, JSON)) == (400, code)


def test_wrong_requests(api):
    """Media type, size, method and URL, each in OpenAI's words."""
    form = api.request("POST", CHAT, b"{}", {"Content-Type": "application/x-www-form-urlencoded"})
    assert code_of(form) == (415, "unsupported-media-type")
    assert "Content-Type: application/json" in form.json["error"]["message"]
    large = chat(api, "x" * 6000)
    assert code_of(large) == (413, "body-too-large") and "MAX_BODY_BYTES" in large.json["error"]["message"]
    wrong = api.get(CHAT)
    assert code_of(wrong) == (405, "method_not_allowed") and "POST" in wrong.headers["Allow"]
    assert code_of(post(api, "/v1/completions/x", {})) == code_of(api.get("/v1")) == (404, "unknown_url")
    assert error_of(chat(api, "Hi", model="gpt-4"))[1] == {
        "message": "The model `gpt-4` is not served here; these are: llama3:8b, able:1b.",
        "type": "invalid_request_error", "param": "model", "code": "model_not_found"}


def test_urls_that_clients_get_wrong(api):
    """Another API is named, a missing /v1 too, and a doubled slash is redirected without losing the body."""
    for reply in (post(api, "/v1/responses", {}), api.get("/v1/responses/x")):
        assert reply.status == 404 and CHAT in error_of(reply)[1]["message"]
    lost = post(api, "/chat/completions", {})
    assert lost.status == 404 and f"{api.url}/v1" in lost.json["error"]["message"] and lost.slug == "not-found"
    for path in ("/v1//chat/completions", "/v1/chat//completions"):
        reply = post(api, path, {})
        assert (reply.status, reply.headers["Location"]) == (308, CHAT)
    assert api.get("//v1//models").status in (200, 308)


def test_keys_and_limits(double, serve):
    """401 and 429 in OpenAI's words, for unknown URLs too; the wait for a long window is given as under a minute."""
    api = serve(double, api_keys="first-key", rate_limit="4/hour")
    for path, headers in ((CHAT, {}), ("/v1/nothing", {}), (CHAT, {"X-API-Key": "first-key"})):
        reply = post(api, path, {}, headers)
        assert code_of(reply) == (401, "invalid_api_key") and reply.headers["WWW-Authenticate"] == "Bearer"
        assert "X-API-Key" not in reply.json["error"]["message"]
    assert chat(api, "Hi", KEY).status == 200
    limited = until(lambda: reply if (reply := api.get(MODELS, headers=KEY)).status != 200 else None)
    assert code_of(limited) == (429, "rate_limit_exceeded") and limited.json["error"]["type"] == "rate_limit_error"
    assert 1 <= int(limited.headers["Retry-After"]) <= 59


def test_browsers_may_call(double, serve):
    """A preflight needs no key and any header is allowed; errors have the headers too."""
    api = serve(double, api_keys="first-key", cors_origins="https://app.example")
    asked = "authorization, x-stainless-os"
    preflight = api.request("OPTIONS", CHAT, headers={
        "Origin": "https://app.example", "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": asked})
    assert (preflight.status, preflight.body) == (204, b"")
    assert preflight.headers["Access-Control-Allow-Headers"].lower() == asked
    refused = post(api, CHAT, {}, {"Origin": "https://app.example"})
    assert refused.status == 401 and refused.headers["Access-Control-Allow-Origin"] == "https://app.example"


def test_the_log_and_the_metrics_know_the_door(api):
    """The endpoint is the route, whatever the model's name was; the prompt is not in the log."""
    prompt = new_prompt("Zanzibar")
    reply = chat(api, prompt)
    record = api.record_of(reply)
    assert (record["path"], record["model"], record["cache"], record["status"]) == (CHAT, MODEL, "miss", 200)
    assert len(record["prompt_sha256"]) == 12 and record["output_tokens"] == reply.json["usage"]["completion_tokens"]
    assert "Zanzibar" not in api.log_path.read_text()
    api.get(f"{MODELS}/x")
    metrics = api.metrics()
    assert metrics["requests_total", CHAT, "POST", "200"] >= 1
    assert metrics["requests_total", f"{MODELS}/<path:model>", "GET", "404"] >= 1
