"""Embeddings from outside: each text cached by itself, exact, shared while it is under way."""

import base64
import json
import struct

import openai
import pytest

from tests.support.double.vectors import text_tokens, vector_for
from tests.support.gunicorn_server import JSON, new_prompt, together, until

MODEL, LENGTH = "embedder:1b", 16
MISS, HIT = "llama-api; fwd=miss; stored", "llama-api; hit"


def prepare(double):
    double.reset()
    double.set(slots=8)
    double.set_model(MODEL, digest="b" * 64, capabilities=["embedding"], embedding_length=LENGTH)


@pytest.fixture(scope="module")
def server(shared_double, shared_serve):
    prepare(shared_double)  # before the service looks, or the first vectors would be of a build that it does not know
    return shared_serve(shared_double, parallel=2, models=MODEL, max_body_bytes=50_000)


@pytest.fixture
def double(shared_double):
    prepare(shared_double)
    return shared_double


@pytest.fixture
def api(server, double):
    """The server, once its probes have found the embedder again: an answer of an unknown build is soon stale."""
    until(lambda: any(model["name"] == MODEL for model in server.get("/api/tags").json["models"]))
    return server


def embed(api, texts, headers=None, **fields):
    """Ask /api/embed."""
    body = json.dumps({"model": MODEL, "input": texts, **fields})
    return api.request("POST", "/api/embed", body, {**JSON, **(headers or {})})


def vectors(*texts, dimensions=None):
    """The double's vectors for texts."""
    return [vector_for(MODEL, text, dimensions, length=LENGTH) for text in texts]


def sent(double):
    """The texts of each call to Ollama."""
    return [call.json["input"] for call in double.calls("/api/embed")]


def test_a_list_is_answered_from_what_is_stored_and_one_call_for_the_rest(api, double):
    """In the order asked, duplicates included, bit for bit what Ollama gives."""
    one, two, three = (new_prompt() for _ in range(3))
    first = embed(api, [one, two, one])
    assert (first.status, first.cache, first.json["model"]) == (200, MISS, MODEL)
    assert first.headers["Content-Type"] == "application/json; charset=utf-8"
    second = embed(api, [three, two, one, three])
    assert second.cache == MISS and second.json["embeddings"] == vectors(three, two, one, three)
    hit = embed(api, [two, one])
    assert hit.cache == HIT and hit.headers["Age"] == "0" and hit.json["embeddings"] == vectors(two, one)
    assert sent(double) == [[one, two], [three]]
    assert hit.json["prompt_eval_count"] == text_tokens(one) + text_tokens(two)
    assert "prompt_eval_count" not in embed(api, [one]).json, "one text's part of a sum is not known"
    assert (hit.json["load_duration"], first.json["total_duration"] > 0) == (0, True)


def test_a_text_alone_is_a_list_of_one(api, double):
    """And has a count of its own."""
    text = new_prompt()
    miss, hit = embed(api, text), embed(api, [text, text])
    assert (miss.cache, hit.cache) == (MISS, HIT) and hit.json["embeddings"] == vectors(text, text)
    assert 2 * miss.json["prompt_eval_count"] == hit.json["prompt_eval_count"] == 2 * text_tokens(text)
    record = api.record_of(miss)
    assert (record["cache"], record["model"], record["input_tokens"], record["output_tokens"]) == (
        "miss", MODEL, text_tokens(text), None)
    assert record["host"] and record["prompt_sha256"] and api.record_of(hit)["cache"] == "hit"


@pytest.mark.parametrize("texts", [[], "", None])
def test_no_text_has_no_vector(api, double, texts):
    """As with Ollama."""
    reply = embed(api, texts)
    assert reply.json == {"model": MODEL, "embeddings": []} and sent(double) == []


def test_what_changes_a_vector_is_part_of_its_key(api, double):
    """Dimensions, truncation, options and the model; not keep_alive, nor options of the load."""
    text = new_prompt()
    assert embed(api, text).cache == MISS
    short = embed(api, text, dimensions=4)
    assert short.cache == MISS and short.json["embeddings"] == vectors(text, dimensions=4)
    assert embed(api, text, truncate=False).cache == embed(api, text, options={"seed": 1}).cache == MISS
    assert embed(api, text, keep_alive=0, options={"num_gpu": 1, "num_ctx": 512}).cache == HIT
    assert double.calls("/api/embed")[0].json == {"model": MODEL, "input": [text]}


@pytest.mark.parametrize("directive, cache", [
    ("no-cache", "llama-api; fwd=request; stored"), ("no-store", "llama-api; fwd=bypass"),
    ("max-age=0", "llama-api; fwd=request; stored"), ("max-age=60", HIT)])
def test_cache_control_is_honoured(api, directive, cache):
    """As on /generate."""
    texts = [new_prompt(), new_prompt()]
    embed(api, texts)
    again = embed(api, texts, {"Cache-Control": directive})
    assert again.cache == cache and again.json["embeddings"] == vectors(*texts)
    assert embed(api, [new_prompt()], {"Cache-Control": "only-if-cached"}).status == 504


def test_the_old_form_gives_one_vector(api, double):
    """By Ollama's own old endpoint, whose vectors may differ, so they are not shared."""
    text = new_prompt()
    for cache in (MISS, HIT):
        reply = api.request("POST", "/api/embeddings", json.dumps({"model": MODEL, "prompt": text}), JSON)
        assert reply.cache == cache and reply.json == {"embedding": vectors(text)[0]}
    assert embed(api, text).cache == MISS and len(double.calls("/api/embeddings")) == 1
    empty = api.request("POST", "/api/embeddings", json.dumps({"model": MODEL}), JSON)
    assert empty.json == {"embedding": []}


@pytest.mark.parametrize("fields, status, text", [
    ({"input": ["a", ""]}, 400, "input[1] is empty"), ({"input": 5}, 400, "invalid input type"),
    ({"input": [1, 2]}, 400, "invalid input type"), ({"input": [["a"]]}, 400, "invalid input type"),
    ({"dimensions": "x"}, 400, "EmbedRequest.dimensions of type int"),
    ({"model": "nope"}, 404, "model 'nope' not found"),
    ({"model": ""}, 400, "model is required"), ({"model": "llama3:8b"}, 501, "does not support embeddings"),
    ({"input": "word " * 9000, "truncate": False}, 400, "the input length exceeds the context length"),
    ({"input": "[[fault=oom]]"}, 502, "this service's log")])
def test_what_is_wrong_is_refused(api, fields, status, text):
    """In Ollama's words where it is the request that is wrong."""
    reply = embed(api, **{"texts": "Hi", **({"texts": fields.pop("input")} if "input" in fields else {})}, **fields)
    assert reply.status == status and reply.json.keys() == {"error"} and text in reply.json["error"]


def test_requests_at_once_share_what_they_need(api, double):
    """Each text is embedded once, in whatever requests and lists it comes."""
    double.set(ttft=0.4)
    texts = [new_prompt() for _ in range(4)]
    wanted = [texts, texts, texts[:2], texts[2:], [texts[3]], [texts[0], *texts]]
    replies = together(len(wanted), lambda number: embed(api, wanted[number]))
    for reply, asked in zip(replies, wanted):
        assert reply.status == 200 and reply.json["embeddings"] == vectors(*asked)
    assert all(double.embedded[text] == 1 for text in texts)
    joined = [reply.cache for reply in replies if reply.cache.endswith("collapsed")]
    assert joined and set(joined) == {"llama-api; fwd=miss; collapsed"}


def test_a_client_that_leaves_stops_ollama(api, double):
    """Unless another needs one of its texts."""
    double.set(ttft=30)
    one, two, three = new_prompt(), new_prompt(), new_prompt()
    first = api.open("POST", "/api/embed", json.dumps({"model": MODEL, "input": [one, two]}), {
        **JSON, "X-Request-ID": "leaver"})
    until(lambda: double.running == 1)
    with api.open("POST", "/api/embed", json.dumps({"model": MODEL, "input": [two, three]}), JSON):
        until(lambda: double.running == 2)
        first.close()
        assert api.record_of("leaver")["error"] == "client-closed-request"
        assert (double.running, double.closed_early) == (2, 0)
    until(lambda: double.running == 0 and double.closed_early == 2, what="the end of both calls")


def test_embeddings_take_slots(double, serve):
    """As generations do, and count as those."""
    api = serve(double, parallel=1, models=MODEL, queue=0)
    double.set(ttft=1)
    with api.open("POST", "/api/embed", json.dumps({"model": MODEL, "input": new_prompt()}), JSON):
        until(lambda: double.running == 1)
        busy = embed(api, new_prompt())
        assert busy.status == 503 and int(busy.headers["Retry-After"]) >= 1
    double.set(ttft=0)
    until(lambda: embed(api, new_prompt()).status == 200)
    assert api.metrics()["generations_total", "stop"] >= 1


def test_workers_share_what_they_embed(double, serve, tmp_path):
    """Vectors survive in the store, as float32."""
    settings = {"cache_url": f"sqlite:///{tmp_path}/answers.db", "models": MODEL}
    one, other = serve(double, **settings), serve(double, **settings)
    texts = [new_prompt(), new_prompt()]
    embed(one, texts)
    hit = embed(other, texts)
    assert hit.cache == HIT and [struct.pack(f"<{LENGTH}f", *vector) for vector in hit.json["embeddings"]] == [
        struct.pack(f"<{LENGTH}f", *vector) for vector in vectors(*texts)]


# OpenAI's form

def create(api, texts, headers=None, **fields):
    """Ask /v1/embeddings."""
    body = json.dumps({"model": MODEL, "input": texts, **fields})
    return api.request("POST", "/v1/embeddings", body, {**JSON, **(headers or {})})


def test_the_answer_in_openais_form(api):
    """A list in the order of the texts; its usage counts what Ollama reports, the total of a call."""
    one, two, three = new_prompt(), new_prompt(), new_prompt()
    tokens = text_tokens(one) + text_tokens(two)
    miss = create(api, [one, two, one])
    assert (miss.status, miss.cache) == (200, MISS) and miss.json == {
        "object": "list", "model": MODEL, "usage": {"prompt_tokens": tokens, "total_tokens": tokens}, "data": [
            {"object": "embedding", "index": index, "embedding": vector}
            for index, vector in enumerate(vectors(one, two, one))]}
    hit = create(api, [two, one])
    assert hit.cache == HIT and hit.json["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}
    assert api.record_of(hit)["input_tokens"] == tokens
    mixed = create(api, [three, one])
    assert mixed.json["usage"] == dict.fromkeys(("prompt_tokens", "total_tokens"), text_tokens(three))
    assert api.record_of(mixed)["input_tokens"] is None, "not all of them"


def test_both_forms_of_a_vector_are_the_same_entry(api, double):
    """base64 is little-endian float32, and no part of the key; /api/embed shares entries where it asks for the same."""
    text = new_prompt()
    floats = create(api, text).json["data"][0]["embedding"]
    reply = create(api, text, encoding_format="base64")
    assert reply.cache == HIT == embed(api, text, truncate=False).cache
    assert base64.b64decode(reply.json["data"][0]["embedding"]) == struct.pack(f"<{LENGTH}f", *floats)
    short = create(api, text, dimensions=4, encoding_format="float").json["data"][0]["embedding"]
    assert short == vectors(text, dimensions=4)[0] and len(double.calls("/api/embed")) == 2


@pytest.mark.parametrize("fields, status, code, param", [
    ({"texts": ""}, 400, "invalid_value", "input"), ({"texts": ["a", ""]}, 400, "invalid_value", "input[1]"),
    ({"texts": [1, 2]}, 400, "invalid_type", "input[0]"), ({"texts": []}, 400, "invalid_value", "input"),
    ({"texts": ["a"] * 2049}, 400, "invalid_value", "input"), ({"dimensions": 0}, 400, "invalid_value", "dimensions"),
    ({"encoding_format": "hex"}, 400, "invalid_value", "encoding_format"),
    ({"model": "llama3:8b"}, 400, "unsupported_value", "model"), ({"model": "gpt-4"}, 404, "model_not_found", "model"),
    ({"texts": "word " * 9000}, 400, "context_length_exceeded", None),
    ({"texts": "[[fault=oom]]"}, 502, "ollama-error", None)])
def test_what_is_wrong_is_refused_in_openais_words(api, double, fields, status, code, param):
    """With the field; a model that cannot embed is known before it is loaded."""
    reply = create(api, **{"texts": "Hi", **fields})
    error = reply.json["error"]
    assert (reply.status, error["code"], error["param"]) == (status, code, param)
    if code not in ("context_length_exceeded", "ollama-error"):
        assert sent(double) == [] and double.loads == 0


def test_the_official_package_gets_exact_vectors(api, double):
    """It requests base64 by default."""
    texts = [new_prompt(), new_prompt(), new_prompt()]
    with openai.OpenAI(base_url=f"{api.url}/v1", api_key="none") as client:
        first = client.embeddings.create(model=MODEL, input=texts)
        second = client.embeddings.create(model=MODEL, input=texts[:2], encoding_format="float")
        with pytest.raises(openai.BadRequestError, match="check_embedding_ctx_length"):
            client.embeddings.create(model=MODEL, input=[[1, 2, 3]])
    assert [one.embedding for one in first.data] == vectors(*texts)
    assert [one.embedding for one in second.data] == vectors(*texts[:2]) and sent(double) == [texts]
    assert first.usage.prompt_tokens == sum(map(text_tokens, texts))
    assert second.usage.prompt_tokens == second.usage.total_tokens == 0, "a part of the sum is not known"
