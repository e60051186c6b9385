"""POST /generate from outside: which requests are accepted, which are refused, the call to Ollama, the answer."""

import json

import pytest

from tests.support.double import answer_for, pieces_for, prompt_tokens
from tests.support.double.models import STOPS
from tests.support.gunicorn_server import JSON, new_prompt, until

METRICS = {"inference_latency_ms", "input_tokens", "output_tokens", "cpu_usage_percent", "memory_usage_percent",
           "queue_ms", "time_to_first_token_ms", "tokens_per_second"}


@pytest.fixture(scope="module")
def server(shared_double, shared_serve):
    return shared_serve(shared_double)


@pytest.fixture(scope="module")
def tuned_server(shared_double, shared_serve):
    return shared_serve(shared_double, num_ctx=2048, keep_alive="10m", max_tokens_limit=50, max_body_bytes=2000,
                        ollama_url=f"{shared_double.url}/")


@pytest.fixture
def tuned(tuned_server, double):
    return tuned_server


def sent_options(double):
    """The options of the last generation."""
    return double.calls("/api/generate")[-1].json["options"]


def test_an_answer_is_text_with_honest_figures_beside_it(api):
    """Every field of the contract, each of its type, with Ollama's own counts."""
    prompt = new_prompt()
    reply = api.ask(prompt)
    body = reply.json
    metrics = body["metrics"]
    assert reply.status == 200 and reply.headers["Content-Type"] == "application/json"
    assert body.keys() == {"response", "model", "finish_reason", "cached", "metrics"} and metrics.keys() == METRICS
    assert (body["response"], body["model"], body["finish_reason"], body["cached"]) == (
        answer_for(prompt), "llama3:8b", "stop", False)
    assert metrics["input_tokens"] == prompt_tokens(prompt)
    assert metrics["output_tokens"] == len(pieces_for(prompt)[0]) + 1
    assert 0 < metrics["cpu_usage_percent"] <= 100 and 0 < metrics["memory_usage_percent"] <= 100
    assert 0 <= metrics["queue_ms"] and 0 < metrics["time_to_first_token_ms"] <= metrics["inference_latency_ms"]
    assert metrics["tokens_per_second"] > 0


def test_latency_leaves_the_queue_out_and_has_the_wait_for_the_first_token(api):
    """The figures name the parts of the time that the caller spent."""
    metrics = api.ask(new_prompt("[[ttft=0.3]] [[gap=0.02]]")).json["metrics"]
    assert metrics["time_to_first_token_ms"] >= 300 and metrics["queue_ms"] < 250
    assert metrics["inference_latency_ms"] >= metrics["time_to_first_token_ms"] + 100


def test_a_hit_is_quick_and_says_what_is_its_own(api, double):
    """Text, reason and counts of the stored answer; the time of the look-up; no speed of a generation."""
    prompt = new_prompt("[[ttft=0.1]]")
    first, hits = api.ask(prompt).json, [api.ask(prompt).json for _ in range(5)]
    for hit in hits:
        assert (hit["cached"], hit["response"], hit["finish_reason"]) == (True, first["response"], "stop")
        for name in ("input_tokens", "output_tokens"):
            assert hit["metrics"][name] == first["metrics"][name]
        assert hit["metrics"]["time_to_first_token_ms"] is None and hit["metrics"]["tokens_per_second"] is None
        assert 0 <= hit["metrics"]["queue_ms"] < 5
    assert min(hit["metrics"]["inference_latency_ms"] for hit in hits) < 5
    assert double.generations[prompt] == 1


def test_the_token_limit_ends_an_answer_with_length(api):
    """max_tokens is what Ollama may generate, and the answer says that it was cut."""
    prompt = new_prompt()
    body = api.ask(prompt, max_tokens=3).json
    assert (body["response"], body["finish_reason"]) == (answer_for(prompt, n=3), "length")
    assert body["metrics"]["output_tokens"] == 3


@pytest.mark.parametrize("fault", ["reason_unknown", "reason_absent", "reason_number", "reason_load"])
def test_an_unknown_reason_is_null_and_such_an_answer_is_not_stored(api, double, fault):
    """Only stop and length are known ends."""
    prompt = new_prompt(f"[[fault={fault}]]")
    for _ in range(2):
        reply = api.ask(prompt)
        assert reply.status == 200 and reply.json["finish_reason"] is None and reply.cache == "llama-api; fwd=miss"
    assert double.generations[prompt] == 2


@pytest.mark.parametrize("fault", ["missing_counts", "missing_metrics", "negative_counts", "string_counts"])
def test_counts_that_ollama_did_not_give_are_null(api, fault):
    """No made-up figures; the text is as good as ever, on a hit too."""
    prompt = new_prompt(f"[[fault={fault}]]")
    for _ in range(2):
        body = api.ask(prompt).json
        assert body["response"] == answer_for(prompt)
        assert body["metrics"]["input_tokens"] is None and body["metrics"]["output_tokens"] is None
        assert body["metrics"]["tokens_per_second"] is None


def test_ollama_is_told_the_defaults_and_nothing_more(api, double):
    """Always a token limit, never a silent cut of the prompt, no option that was not set."""
    prompt = new_prompt()
    api.ask(prompt)
    assert double.calls("/api/generate")[-1].json == {
        "model": "llama3:8b", "prompt": prompt, "stream": True, "truncate": False,
        "options": {"num_predict": 100, "temperature": 0.7}}


def test_ollama_is_told_what_the_caller_set(api, double):
    """Each field reaches the option it stands for; the caller's stops come after the model's own."""
    prompt = new_prompt()
    api.ask(prompt, max_tokens=7, temperature=0, system="Be brief.", stop=["x", "y"], seed=0, top_p=1, top_k=1000)
    call = double.calls("/api/generate")[-1].json
    assert call["system"] == "Be brief."
    assert call["options"] == {"num_predict": 7, "temperature": 0, "seed": 0, "top_p": 1, "top_k": 1000,
                               "stop": [*STOPS, "x", "y"]}
    api.ask(prompt, stop="z")
    assert sent_options(double)["stop"] == [*STOPS, "z"]


def test_a_stop_ends_the_answer(api):
    """The text ends before the stop, by a reason of stop."""
    prompt = new_prompt("[[tokens=20]]")
    word = pieces_for(prompt)[0][7].strip()
    body = api.ask(prompt, stop=word).json
    assert (body["response"], body["finish_reason"]) == (answer_for(prompt, stop=[word]), "stop")


def test_the_operators_settings_reach_ollama(tuned, double):
    """NUM_CTX and KEEP_ALIVE go with every call; MAX_TOKENS_LIMIT caps the default; a base URL may end with a slash."""
    tuned.ask(new_prompt())
    call = double.calls("/api/generate")[-1].json
    assert (call["keep_alive"], call["options"]["num_ctx"], call["options"]["num_predict"]) == ("10m", 2048, 50)
    assert tuned.ask(new_prompt(), max_tokens=50).status == 200
    assert list(tuned.ask(new_prompt(), max_tokens=51).json["errors"]) == ["max_tokens"]


def test_nobody_sends_ollama_what_it_must_not_see(api, double):
    """A browser's Origin, a client's key or cookie stay here (Ollama refuses an Origin it does not know)."""
    reply = api.ask(new_prompt(), headers={"Origin": "https://evil.example", "Cookie": "a=b", "X-API-Key": "k"})
    assert reply.status == 200
    assert not {"origin", "cookie", "x-api-key"} & double.calls("/api/generate")[-1].headers.keys()


def with_field(name, text):
    """A request body with one field in addition to the prompt, as JSON text."""
    return f'{{"prompt": "Why?", "{name}": {text}}}'


REFUSED = [
    ("prompt", "{}"), ("prompt", '{"prompt": ""}'), ("prompt", '{"prompt": " \\n\\t"}'), ("prompt", '{"prompt": null}'),
    ("prompt", '{"prompt": 5}'), ("prompt", '{"prompt": ["a"]}'), ("prompt", '{"prompt": {"a": 1}}'),
    ("prompt", '{"prompt": true}'), ("prompt", '{"prompt": "\\ud83d"}'), ("prompt", '{"prompt": "\\u3000"}'),
    *[(name, with_field(name, text)) for name, texts in {
        "max_tokens": ["0", "-1", "8193", '"5"', "true", "5.5", "[]", "{}", "1e999", "99999999999999999999"],
        "temperature": ["-0.1", "2.1", '"0.7"', "true", "[]", "{}", "1e999", "-1e999"],
        "system": ["5", "true", "[]", '{"a": 1}', '"\\udc00"'],
        "stop": ["5", "true", '""', '[""]', '["a", 5]', "[null]", json.dumps([str(n) for n in range(17)]), "{}",
                 '["\\ud83d"]', "[[]]"],
        "seed": ["-1", "2147483648", '"1"', "true", "1.5"],
        "top_p": ["0", "-0.1", "1.1", '"1"', "true", "[]"],
        "top_k": ["0", "1001", '"5"', "true", "1.5"],
        "stream": ['"true"', "1", "0", "[]", '"false"'],
        "num_ctx": ["4096"], "model": ['"other"'], "temprature": ["0.7"], "": ["1"], "Prompt": ['"x"'],
        "options": ['{"num_ctx": 1}'], "keep_alive": ["0"]}.items() for text in texts]]


@pytest.mark.parametrize("field, body", REFUSED)
def test_a_wrong_field_is_named(api, double, field, body):
    """422 invalid-request with messages under that field's name alone; nothing is asked of Ollama."""
    reply = api.ask_raw(body)
    assert (reply.status, reply.slug) == (422, "invalid-request")
    assert list(reply.json["errors"]) == [field] and field in reply.json["detail"]
    assert reply.json["errors"][field] and all(type(text) is str for text in reply.json["errors"][field])
    assert not double.calls("/api/generate")


def test_all_wrong_fields_are_named_at_once(api):
    """A caller corrects everything in one go."""
    reply = api.ask_raw('{"max_tokens": 0, "seed": "x", "colour": 1}')
    assert reply.json["errors"].keys() == {"prompt", "max_tokens", "seed", "colour"}


MALFORMED = [
    b"", b" ", b"{", b"null", b"[]", b'"Why?"', b"5", b"true", b"prompt=Why", b'{"prompt": "a"} x', b"{'prompt': 'a'}",
    b'{"prompt": "a",}', b'{"prompt": "a" "b"}', b'{"prompt": "a\n"}', b'{"prompt": "a", "prompt": "b"}',
    b'{"prompt": "a", "temperature": NaN}', b'{"prompt": "a", "temperature": Infinity}',
    b'{"prompt": "a", "temperature": -Infinity}', b'{"prompt": "a", "x": {"y": 1, "y": 2}}', b'{"prompt": "\xff"}',
    b'{"prompt": "\xed\xa0\x80"}', b"[" * 100_000, b'{"prompt":' * 50_000, b'\xff\xfe{\x00}\x00',
    b'{"prompt": "a", "max_tokens": 05}', b'{"prompt": "a", "max_tokens": ' + b"9" * 5000 + b"}", b"\x00",
    b'[{"prompt": "a"}]', b'{"prompt": "a"}{"prompt": "b"}']


@pytest.mark.parametrize("body", MALFORMED, ids=lambda body: repr(body[:40]))
def test_what_is_not_one_json_object_is_malformed(api, double, body):
    """400 malformed-json, whatever the bytes are."""
    reply = api.ask_raw(body)
    assert (reply.status, reply.slug) == (400, "malformed-json")
    assert not double.calls("/api/generate")


@pytest.mark.parametrize("fields", [
    {"max_tokens": 5.0}, {"max_tokens": 8192}, {"max_tokens": 1}, {"temperature": 0}, {"temperature": 2},
    {"temperature": 2.0}, {"seed": 0}, {"seed": 2147483647}, {"seed": 3.0}, {"top_p": 1}, {"top_p": 0.0001},
    {"top_k": 1}, {"top_k": 1000}, {"stop": []}, {"stop": [str(n) for n in range(16)]}, {"system": ""},
    {"system": " "}, {"stop": " "}, {"stop": None, "system": None, "seed": None, "top_p": None, "top_k": None,
                                     "max_tokens": None, "temperature": None, "stream": None}], ids=str)
def test_what_the_rules_allow_is_answered(api, fields):
    """The bounds themselves are inside; null stands for the default."""
    assert api.ask(new_prompt(), **fields).status == 200


def test_any_text_comes_through_whole(api):
    """Every script, control characters and more than a megabyte's worth of JSON escapes are no trouble."""
    prompt = new_prompt() + "\u0000\u001f\"\\/\b\r\n\u2028\u2029\U0001f999漢字é" + "ü" * 100_000
    reply = api.ask(prompt)
    assert reply.status == 422 or reply.text == answer_for(prompt)


@pytest.mark.parametrize("version, told", [
    ("0.12.6", "window; shorten"), ("0.29.0", "window; shorten"), ("0.30.0", "61 tokens, room for 20"),
    ("0.33.0", "61 tokens, room for 20")])
def test_a_prompt_that_does_not_fit_is_refused(api, double, version, told):
    """422 prompt-too-long by each Ollama that reports it, with its size if that is known; nothing is cut or stored."""
    double.set(num_ctx=20, version=version)
    for stream in (False, True):
        reply = api.ask("word " * 50, stream=stream)
        assert (reply.status, reply.slug) == (422, "prompt-too-long") and told in reply.json["detail"]
    assert double.calls("/api/generate")[-1].json["truncate"] is False


CONTENT_TYPES = [
    ("application/json", 200), ("application/json; charset=utf-8", 200), ("Application/JSON", 200),
    ("text/plain", 415), ("application/x-www-form-urlencoded", 415), ("multipart/form-data; boundary=x", 415),
    ("", 415), (None, 415), ("application/jsonp", 415), ("json", 415)]


@pytest.mark.parametrize("kind, status", CONTENT_TYPES)
def test_only_json_is_taken(api, kind, status):
    """A body of another Content-Type is 415 unsupported-media-type."""
    reply = api.ask_raw(json.dumps({"prompt": "Why?"}), {} if kind is None else {"Content-Type": kind})
    assert reply.status == status
    assert status == 200 or reply.slug == "unsupported-media-type"


def padded(size):
    """A valid body of exactly ``size`` bytes."""
    return b'{"prompt": "Why?"' + b" " * (size - 18) + b"}"


def test_a_body_may_have_max_body_bytes_and_no_more(tuned):
    """413 body-too-large, with or without a Content-Length; the next request works."""
    assert tuned.ask_raw(padded(2000)).status == 200
    for body in (padded(2001), padded(200_000)):
        assert (reply := tuned.ask_raw(body)).status == 413 and reply.slug == "body-too-large"
        chunked = tuned.request("POST", "/generate", iter([body[:1000], body[1000:]]), JSON)
        assert chunked.status == 413 and chunked.slug == "body-too-large"
    assert tuned.ask(new_prompt()).status == 200


def test_a_megabyte_fits_by_default(api):
    """The default bound is 1 MiB, to the byte."""
    assert api.ask_raw(padded(1 << 20)).status == 200
    assert api.ask_raw(padded((1 << 20) + 1)).status == 413


def test_a_chunked_body_is_taken(api):
    """A client need not know its body's length beforehand."""
    prompt = new_prompt()
    body = json.dumps({"prompt": prompt}).encode()
    assert api.request("POST", "/generate", iter([body[:5], body[5:]]), JSON).text == answer_for(prompt)


def test_the_machines_figures_are_never_a_false_zero(double, serve):
    """The very first request of a process has a true figure already."""
    metrics = serve(double).ask(new_prompt()).json["metrics"]
    assert 0 < metrics["cpu_usage_percent"] <= 100 and 0 < metrics["memory_usage_percent"] <= 100


def test_the_models_own_stops_are_learned_anew_with_its_build(own_double, serve):
    """A new build may have other stops: /api/show is asked once a build, not once a request."""
    api = serve(own_double)
    for _ in range(3):
        api.ask(new_prompt(), stop="x")
    asked = len(own_double.calls("/api/show"))
    assert asked <= 1
    own_double.set_digest("llama3:8b")

    def shown_again():
        api.ask(new_prompt(), stop="x")
        return len(own_double.calls("/api/show")) == asked + 1
    until(shown_again, 5)
