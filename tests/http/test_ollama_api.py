"""Ollama's API from outside: its wire, its errors, its hits, and who leaves."""

import json

import pytest

from tests.support.double import answer_for, pieces_for, prompt_tokens
from tests.support.double.models import STOPS
from tests.support.gunicorn_server import JSON, new_prompt, until

GONE = 2.0  # seconds in which a generation that nobody wants must stop
MODEL = "llama3:8b"
NDJSON = "application/x-ndjson"


@pytest.fixture(scope="module")
def server(shared_double, shared_serve):
    return shared_serve(shared_double, parallel=2, max_tokens_limit=300, max_body_bytes=20_000, heartbeat=0.3,
                        models="helper:1b,missing:1b", model_aliases="gpt-4o-mini=llama3:8b")


@pytest.fixture
def double(double):
    double.set(slots=8)
    double.set_model("helper:1b", digest="b" * 64, capabilities=[
        "completion", "tools", "thinking", "insert", "vision"])
    double.set_model("private:1b", digest="b" * 64)
    return double


def post(api, name, body, headers=None):
    """Send a body to /api/<name> and return the whole reply."""
    data = body if isinstance(body, bytes) else json.dumps(body)
    return api.request("POST", f"/api/{name}", data, JSON if headers is None else headers)


def generate(api, prompt, headers=None, **fields):
    """Ask /api/generate for a plain answer."""
    return post(api, "generate", {"model": MODEL, "prompt": prompt, "stream": False, **fields}, {**JSON, **(
        headers or {})})


def chat(api, prompt, headers=None, **fields):
    """Ask /api/chat for a plain answer to one message."""
    return post(api, "chat", {"model": MODEL, "messages": [{"role": "user", "content": prompt}], "stream": False,
                              **fields}, {**JSON, **(headers or {})})


def records(reply):
    """The records of a stream."""
    assert reply.headers["Content-Type"] == NDJSON and reply.body.endswith(b"\n")
    return [json.loads(line) for line in reply.body.splitlines()]


def refused(reply):
    """Status and text of an error in Ollama's grammar."""
    assert reply.headers["Content-Type"].startswith("application/json") and reply.headers["X-Request-ID"]
    assert reply.json.keys() == {"error"}
    return reply.status, reply.json["error"]


# Answers

def test_a_plain_answer_has_the_shape_of_ollamas(api, double):
    """Its text, reason, context, counts and durations are what Ollama gave, the name is the caller's."""
    prompt = new_prompt()
    reply = generate(api, prompt, model="LLAMA3:8b")
    body = reply.json
    assert reply.status == 200 and reply.cache == "llama-api; fwd=miss; stored"
    assert reply.headers["Content-Type"] == "application/json; charset=utf-8"
    assert body.keys() == {"model", "created_at", "response", "done", "done_reason", "context", "total_duration",
                           "load_duration", "prompt_eval_count", "prompt_eval_duration", "eval_count", "eval_duration"}
    assert (body["model"], body["response"], body["done"], body["done_reason"]) == (
        "LLAMA3:8b", answer_for(prompt), True, "stop")
    assert body["prompt_eval_count"] == prompt_tokens(prompt) and body["total_duration"] > body["load_duration"] > 0
    record = api.record_of(reply)
    assert (record["cache"], record["model"], record["output_tokens"]) == ("miss", MODEL, body["eval_count"])


@pytest.mark.parametrize("ask, said", [(generate, lambda record: record["response"]),
                                       (chat, lambda record: record["message"]["content"])])
def test_a_stream_is_the_default_and_a_record_a_line(api, ask, said):
    """Each piece as it came, then the record with done; the second time it is a hit, plain and streamed."""
    prompt = new_prompt()
    reply = ask(api, prompt, stream=None)
    *pieces, last = records(reply)
    assert reply.headers["Cache-Control"] == "no-store" and reply.headers["X-Accel-Buffering"] == "no"
    assert [said(record) for record in pieces] == list(pieces_for(prompt)[0])
    assert not any(record["done"] for record in pieces) and last["done"] and said(last) == ""
    plain, streamed = ask(api, prompt), ask(api, prompt, stream=True)
    assert plain.cache == streamed.cache == "llama-api; hit" and plain.headers["Age"] == "0"
    assert said(plain.json) == "".join(said(record) for record in records(streamed)) == answer_for(prompt)
    for hit in (plain.json, records(streamed)[-1]):
        assert (hit["prompt_eval_count"], hit["eval_count"]) == (last["prompt_eval_count"], last["eval_count"])
        assert (hit["load_duration"], hit["done_reason"]) == (0, "stop") and hit["total_duration"] > 0
        assert hit.keys().isdisjoint({"prompt_eval_duration", "eval_duration"})


def test_doors_share_what_asks_ollama_for_the_same(api, double):
    """What POST /generate has generated is a hit here, and the other way round."""
    first, second = new_prompt(), new_prompt()
    options = {"num_predict": 100, "temperature": 0.7}
    api.ask(first)
    assert generate(api, first, options=options, truncate=False).cache == "llama-api; hit"
    generate(api, second, options=options, truncate=False, model="gpt-4o-mini")
    assert api.ask(second).json["cached"] and double.generations[second] == 1


def test_what_the_caller_sends_reaches_ollama(api, double):
    """Every field but what is the operator's; stops are added to the model's own."""
    given = {"system": "Be kind.", "template": "{{ .Prompt }}", "format": {"type": "object"}, "suffix": "end",
             "think": False, "truncate": True, "shift": False, "logprobs": True, "top_logprobs": 2, "context": [1, 2],
             "images": ["aGk="]}
    generate(api, new_prompt(), model="helper:1b", keep_alive=0, options={
        "seed": 1, "top_k": 3, "stop": ["x"], "num_ctx": 512, "num_gpu": 1, "num_predict": -1}, **given)
    sent = double.calls("/api/generate")[-1].json
    assert {name: sent[name] for name in given} == given and sent["model"] == "helper:1b"
    assert sent["options"] == {"num_predict": 300, "seed": 1, "top_k": 3, "stop": [*STOPS, "x"]}
    assert sent.keys() - given.keys() == {"model", "options", "prompt", "stream"}


def test_a_conversation_goes_on_by_its_context(api):
    """What an answer gives, the next request may send."""
    first = generate(api, new_prompt()).json
    second = generate(api, new_prompt(), context=first["context"]).json
    assert second["context"][:len(first["context"])] == first["context"]
    assert "context" not in generate(api, new_prompt(), raw=True).json


def test_tools_thinking_and_logprobs_come_back(api, double):
    """Plain, streamed and from the cache alike."""
    tool = {"type": "function", "function": {"name": "weather", "parameters": {
        "type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}}
    double.set(tool="weather")
    asked = {"model": "helper:1b", "tools": [tool], "logprobs": True}
    prompt = new_prompt()
    streamed = records(chat(api, prompt, stream=True, **asked))
    hit = chat(api, prompt, **asked)
    message = hit.json["message"]
    assert hit.cache == "llama-api; hit" and message["tool_calls"][0]["function"]["name"] == "weather"
    assert message["thinking"] == "".join(record["message"].get("thinking", "") for record in streamed) != ""
    assert [call for record in streamed for call in record["message"].get("tool_calls", [])] == message["tool_calls"]
    assert [one for record in streamed for one in record.get("logprobs", [])] == hit.json["logprobs"] != []
    assert generate(api, new_prompt(), logprobs=True, top_logprobs=1).json["logprobs"][0]["top_logprobs"]


def test_a_prompt_can_be_rendered_alone(api, double):
    """As one object, and never from the cache."""
    prompt = new_prompt()
    for _ in range(2):
        body = generate(api, prompt, stream=True, _debug_render_only=True).json
        assert prompt in body["_debug_info"]["rendered_template"] and body["response"] == ""


@pytest.mark.parametrize("name, asked, said", [
    ("generate", {"prompt": ""}, {"response": ""}), ("generate", {"keep_alive": 0}, {"response": ""}),
    ("chat", {"messages": []}, {"message": {"role": "assistant", "content": ""}})])
def test_an_empty_request_loads_and_never_unloads(api, double, name, asked, said):
    """It answers when the model is there, as one object; another caller's keep_alive is no reason to unload."""
    double.set(load=0.3)
    body = post(api, name, {"model": "gpt-4o-mini", "stream": True, **asked}).json
    assert body.pop("created_at") and body == {"model": "gpt-4o-mini", **said, "done": True, "done_reason": "load"}
    assert [model["name"] for model in api.get("/api/ps").json["models"]] == [MODEL] and double.loads == 1


@pytest.mark.parametrize("headers", [{}, {"Content-Type": "text/plain"}, {
    "Content-Type": "application/x-www-form-urlencoded"}, {**JSON, "Origin": "http://page.example"}])
def test_the_content_type_is_not_looked_at(api, headers):
    """Ollama's clients need not send one."""
    body = {"Model": MODEL, "PROMPT": new_prompt(), "stream": False, "no_such": 1}
    assert post(api, "generate", json.dumps(body).encode() + b" trailing", headers).status == 200


def test_a_page_of_another_site_cannot_ask_without_asking_the_browser(api):
    """What a browser sends without a preflight must not start a generation."""
    reply = post(api, "generate", {"model": MODEL, "prompt": "Hi"}, {
        "Content-Type": "text/plain", "Origin": "http://evil.example"})
    assert refused(reply)[0] == 415


def test_silence_is_broken_by_records_without_text(api):
    """An ordinary record at each interval, so that nobody gives up."""
    prompt = new_prompt("[[ttft=1.2]]")
    *pieces, last = records(chat(api, prompt, stream=True))
    waiting = [record for record in pieces if record["message"]["content"] == ""]
    assert len(waiting) >= 2 and waiting == pieces[:len(waiting)]
    assert all(record["message"]["role"] == "assistant" and not record["done"] for record in waiting)
    assert "".join(record["message"]["content"] for record in pieces) == answer_for(prompt) and last["done"]


@pytest.mark.parametrize("name", ["generate", "chat"])
def test_one_answer_serves_all_who_ask_at_once(api, double, name):
    """A plain caller joins the stream under way."""
    prompt = new_prompt("[[gap=0.2]] [[tokens=5]]")
    body = {"model": MODEL, "prompt": prompt, "messages": [{"role": "user", "content": prompt}]}
    with api.open("POST", f"/api/{name}", json.dumps(body)) as stream:
        stream.head.readline()
        joined = post(api, name, {**body, "stream": False})
        assert joined.cache == "llama-api; fwd=miss; collapsed" and joined.json["eval_duration"] > 0
        assert stream.read().endswith(b"\n")
    assert double.generations[prompt] == 1


def test_a_client_that_leaves_a_stream_stops_ollama(api, double):
    """Within two seconds, and nothing is stored."""
    prompt = new_prompt("[[gap=0.2]] [[tokens=100]]")
    with api.open("POST", "/api/generate", json.dumps({"model": MODEL, "prompt": prompt})) as stream:
        stream.head.readline()
        assert double.running == 1
    until(lambda: double.running == 0, GONE, "the end of the generation")
    assert double.closed_early == 1
    assert refused(generate(api, prompt, {"Cache-Control": "only-if-cached"}))[0] == 504


# The inventory

def test_the_served_models_are_listed_with_their_aliases(api):
    """Neither what is not served nor what Ollama lacks."""
    models = {model["name"]: model for model in until(lambda: [
        model for model in api.get("/api/tags").json["models"]
        if "helper:1b" in {other["name"] for other in api.get("/api/tags").json["models"]}])}
    assert models.keys() == {MODEL, "helper:1b", "gpt-4o-mini"}
    alias = models["gpt-4o-mini"]
    assert alias["model"] == "gpt-4o-mini" and alias["digest"] == models[MODEL]["digest"] and alias["size"] > 0
    head = api.request("HEAD", "/api/tags")
    assert head.status == 200 and head.body == b""


def test_the_loaded_models_that_are_served_are_listed(api, double):
    """As /api/ps tells them."""
    double.set_model("private:1b", loaded=True)
    assert api.get("/api/ps").json == {"models": []}
    double.set_model(MODEL, loaded=True)
    loaded, = api.get("/api/ps").json["models"]
    assert (loaded["name"], loaded["context_length"]) == (MODEL, 8192)


@pytest.mark.parametrize("body", [{"model": "gpt-4o-mini"}, {"model": "", "name": "LLAMA3:8B", "options": None}])
def test_a_model_is_shown_under_any_of_its_names(api, body):
    """What Ollama tells of it, whole."""
    shown = post(api, "show", body).json
    assert shown["capabilities"] == ["completion"] and shown["model_info"]["llama.context_length"] == 8192
    assert shown.keys() >= {"details", "modified_at", "parameters", "template", "license"}


def test_what_is_asked_beside_the_model_reaches_ollama(api, double):
    """The old name of the field does not: it has done its work."""
    fields = {"verbose": True, "system": "Be kind.", "template": "{{ .Prompt }}", "options": {"seed": 1}}
    assert post(api, "show", {"name": "gpt-4o-mini", **fields}).status == 200
    assert double.calls("/api/show")[-1].json == {"model": MODEL, **fields}


def test_version_status_and_greeting(api):
    """The version is Ollama's; no cloud is used."""
    assert until(lambda: api.get("/api/version").json == {"version": "0.33.0"})
    assert api.get("/api/status").json["cloud"]["disabled"] is True
    for method, body in (("GET", b"Ollama is running"), ("HEAD", b"")):
        reply = api.request(method, "/", headers={"Accept": "*/*"})
        assert (reply.status, reply.body) == (200, body) and reply.headers["Content-Type"].startswith("text/plain")


# Errors

@pytest.mark.parametrize("name, body, status, text", [
    ("generate", b"", 400, "missing request body"), ("generate", b"{x", 400, "invalid character 'x'"),
    ("generate", {"prompt": "Hi"}, 404, "model '' not found"),
    ("generate", {"model": "private:1b", "prompt": "Hi"}, 404, "model 'private:1b' not found"),
    ("generate", {"model": "x y", "prompt": "Hi"}, 400, "invalid model name"),
    ("generate", {"model": MODEL, "prompt": 5}, 400, "GenerateRequest.prompt of type string"),
    ("generate", {"model": MODEL, "prompt": "Hi", "options": {"seed": "x"}}, 400, 'option "seed" must be of type'),
    ("generate", {"model": MODEL, "prompt": "Hi", "format": "xml"}, 400, "invalid format"),
    ("generate", {"model": MODEL, "prompt": "Hi", "options": {"num_ctx": 8193}}, 400, "8192 tokens"),
    ("generate", {"model": MODEL, "prompt": "Hi", "options": {"num_predict": 301}}, 400, "300"),
    ("chat", {"messages": [{"role": "user", "content": "Hi"}]}, 400, "model is required"),
    ("chat", {"model": "nope", "messages": []}, 404, "model 'nope' not found"),
    ("chat", {"model": MODEL, "messages": ["Hi"]}, 400, "ChatRequest.messages[0]"),
    ("show", {}, 400, "model is required"), ("show", {"model": "nope"}, 404, "model 'nope' not found")])
def test_a_wrong_request_is_refused_before_ollama_is_asked(api, double, name, body, status, text):
    """In Ollama's words where it has any."""
    found, error = refused(post(api, name, body))
    assert found == status and text in error
    assert not double.calls("/api/generate") and not double.calls("/api/chat")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fields, status, text", [
    ({"model": "missing:1b"}, 404, "model 'missing:1b' not found"),
    ({"think": True}, 400, f'"{MODEL}" does not support thinking'),
    ({"suffix": "x"}, 400, f"registry.ollama.ai/library/{MODEL} does not support insert"),
    ({"prompt": "[[fault=bad_request]]"}, 400, "invalid options: top_k is too large"),
    ({"prompt": "[[fault=too_long]]"}, 400, "exceed_context_size_error")])
def test_what_ollama_refuses_is_passed_on(api, fields, status, text, stream):
    """With its status and text, before anything is sent."""
    found, error = refused(post(api, "generate", {"model": MODEL, "prompt": "Hi", "stream": stream, **fields}))
    assert found == status and text in error


@pytest.mark.parametrize("fault, status, words, retry", [
    ("oom", 502, "log", False), ("html_502", 502, "OLLAMA_URL", False), ("busy", 503, "busy", True),
    ("done_false", 502, "complete", False)])
def test_other_failures_have_our_statuses_and_words(api, fault, status, words, retry):
    """Nothing of what Ollama says of its own troubles."""
    reply = generate(api, f"[[fault={fault}]] {new_prompt()}")
    found, error = refused(reply)
    assert found == status and words in error and "llama-server" not in error
    assert ("Retry-After" in reply.headers) is retry
    assert api.record_of(reply)["error"] == {502: "ollama-error", 503: "overloaded"}[status]


@pytest.mark.parametrize("fault", ["error_line", "eof", "reset_midway"])
def test_a_stream_that_breaks_ends_with_an_error(api, double, fault):
    """A line of its own after the pieces, and no record with done."""
    reply = generate(api, f"[[fault={fault}]] {new_prompt()}", stream=True)
    *pieces, last = records(reply)
    assert reply.status == 200 and pieces and not any(record["done"] for record in pieces)
    assert last.keys() == {"error"} and "Ollama" in last["error"]


@pytest.mark.parametrize("method, path", [
    ("POST", "pull"), ("POST", "push"), ("POST", "create"), ("POST", "copy"), ("DELETE", "delete"), ("POST", "me"),
    ("POST", "signout"), ("GET", "signin"), ("POST", "blobs/sha256:0123"), ("HEAD", "blobs/sha256:0123"),
    ("DELETE", "user/keys/abc"), ("GET", "pull"), ("PUT", "create"), ("PATCH", "delete")])
def test_what_would_change_ollama_is_forbidden(api, double, method, path):
    """Whatever the method, and Ollama hears nothing of it."""
    reply = api.request(method, f"/api/{path}", b"{}")
    assert reply.status == 403
    if method != "HEAD":
        assert "would change the Ollama server" in refused(reply)[1]
    assert {call.path for call in double.calls()} <= {"/api/tags", "/api/version", "/api/ps"}


@pytest.mark.parametrize("method, path, status", [
    ("GET", "/api/generate", 405), ("DELETE", "/api/tags", 405), ("GET", "/api/nothing", 404), ("POST", "/api/", 404),
    ("GET", "/api", 404), ("POST", "/api/generate/x", 404)])
def test_an_unknown_url_is_told_in_the_same_grammar(api, method, path, status):
    """Below /api everything is."""
    reply = api.request(method, path)
    assert refused(reply)[0] == status and ("Allow" in reply.headers) is (status == 405)


def test_a_body_that_is_too_large_is_told_with_the_setting(api):
    """Images count too."""
    status, text = refused(generate(api, "Hi", images=["aGk=" * 6000]))
    assert status == 413 and "LLAMA_API_MAX_BODY_BYTES" in text


def test_keys_and_limits_guard_it_as_the_rest(double, serve):
    """With the errors of this API."""
    api = serve(double, api_keys="a-key-of-some-length", rate_limit="3/hour")
    key = {"Authorization": "Bearer a-key-of-some-length"}
    reply = api.get("/api/tags")
    assert refused(reply)[0] == 401 and reply.headers["WWW-Authenticate"] == "Bearer"
    assert [api.get("/api/tags", headers=key).status for _ in range(4)] == [200, 200, 200, 429]
    assert "Retry-After" in api.get("/api/tags", headers=key).headers


def test_without_an_ollama_it_says_so(shared_serve):
    """The version is then none; models cannot be told, nor answers made."""
    api = shared_serve(ollama_url="http://127.0.0.1:1")
    assert api.get("/api/tags").json == {"models": []} and api.get("/api/version").json == {"version": "0.0.0"}
    for status, text in (refused(generate(api, "Hi")), refused(api.get("/api/ps")), refused(
            generate(api, "")), refused(post(api, "show", {"model": MODEL}))):
        assert status == 503 and "ollama serve" in text


# Cloud models

STUB = {"remote_host": "https://ollama.example", "size": 384}


def test_a_stub_of_a_cloud_model_is_no_model(own_double, serve):
    """With all models served it is listed nowhere, nor known by its name or an alias: its prompts would leave."""
    own_double.set_model("stub:1b", loaded=True, **STUB)
    api = serve(own_double, models="*", model_aliases="alias=stub:1b")
    until(lambda: api.get("/readyz").status == 200)
    for path, members in (("/v1/models", "data"), ("/api/tags", "models"), ("/api/ps", "models")):
        listed = api.get(path)
        assert listed.status == 200 and "stub" not in listed.body.decode() and "alias" not in listed.body.decode()
    for name in ("stub:1b", "alias"):
        body = {"model": name, "prompt": "Hi", "messages": [{"role": "user", "content": "Hi"}], "input": "Hi"}
        assert api.request("POST", "/generate", json.dumps({"model": name, "prompt": "Hi"}), JSON).status == 422
        for path in ("/api/generate", "/api/chat", "/api/embed", "/api/embeddings", "/api/show"):
            assert api.request("POST", path, json.dumps(body)).status == 404, path
        assert api.get(f"/v1/models/{name}").status == 404
    assert not own_double.generations and not own_double.embedded and not own_double.calls("/api/show")


def test_a_model_that_ollama_has_no_more_is_not_served(own_double, serve):
    """Nor is it known from a body that was read while it was there."""
    own_double.set_model("extra:1b", digest="b" * 64)
    api = serve(own_double, models="*")
    body = {"model": "extra:1b", "prompt": new_prompt(), "messages": [{"role": "user", "content": new_prompt()}]}
    asked = {"/generate": {"model": body["model"], "prompt": body["prompt"]}, "/api/generate": body,
             "/api/chat": body, "/v1/chat/completions": {"model": body["model"], "messages": body["messages"]}}

    def statuses():
        return [api.request("POST", path, json.dumps(fields), JSON).status for path, fields in asked.items()]

    assert until(lambda: "extra" in api.get("/api/tags").body.decode()) and statuses() == [200] * 4
    own_double.remove_model("extra:1b")
    until(lambda: "extra" not in api.get("/api/tags").body.decode())
    assert statuses() == [422, 404, 404, 404]


def test_a_stub_in_place_of_a_configured_model_is_as_good_as_none(own_double, serve):
    """The service says why it is not well, and sends nothing: no prompt, no text to embed, no load."""
    own_double.set_digest("llama3:8b", **STUB)
    own_double.set_digest("other:1b", **STUB)
    api = serve(own_double, models="other:1b", model_aliases="alias=other:1b", preload=True)
    told = until(lambda: "cloud model" in (told := api.health()).get("reason", "") and told)
    assert told["status"] == "unhealthy" and "`ollama pull llama3:8b`" in told["reason"]
    assert (told["hosts"][0]["usable"], told["hosts"][0]["model_present"]) == (False, False)
    assert "cloud model" in api.get("/readyz").json["reason"]
    refused = api.ask(new_prompt())
    assert (refused.status, refused.slug) == (503, "model-not-found") and "cloud model" in refused.json["detail"]
    for path, body in (("/api/generate", {}), ("/api/generate", {"prompt": "Hi"}), ("/api/embed", {"input": "Hi"}),
                       ("/api/show", {})):
        reply = api.request("POST", path, json.dumps({"model": "alias", **body}))
        assert reply.status == 404 and "cloud model" in reply.json["error"], path
    assert api.get("/v1/models").json["data"] == [] and "cloud model" in api.get("/v1/models/alias").body.decode()
    assert not any(own_double.calls(path) for path in ("/api/generate", "/api/chat", "/api/embed", "/api/show"))
    own_double.set_digest("llama3:8b", remote_host="")
    until(lambda: api.ask(new_prompt()).status == 200)
    assert "other:1b only as a cloud model" in until(lambda: api.health().get("reason"))
