"""The figures from outside: responses, log and Prometheus agree, over all workers."""

from collections import Counter

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.gunicorn_server import JSON, new_prompt, together, until

NO_CACHE, NO_STORE = {"Cache-Control": "no-cache"}, {"Cache-Control": "no-store"}
NAMES = """requests_total request_duration_seconds_bucket request_duration_seconds_count
    request_duration_seconds_sum generations_total inference_duration_seconds_bucket
    time_to_first_token_seconds_bucket queue_wait_seconds_bucket prompt_tokens_total generated_tokens_total
    saved_tokens_total saved_seconds_total answers_total cache_requests_total cache_entries cache_bytes
    cache_bytes_limit cache_evictions_total generations_running generations_waiting errors_total ollama_up
    slots failovers_total prefix_matches_total""".split()
RESULTS = {"hit", "stale", "miss", "collapsed", "refresh", "bypass"}
SAVING = {"hit", "stale", "collapsed"}
ANSWERED = dict.fromkeys(RESULTS, "generated") | {"hit": "hit", "stale": "hit", "collapsed": "joined"}


@pytest.fixture(params=["one worker", "two workers"])
def api(request, double, serve, tmp_path):
    double.set(slots=8)
    if request.param == "one worker":
        return serve(double, timeout=0.7, parallel=4, cache_max_entries=20)
    return serve(double, timeout=0.7, parallel=4, cache_max_entries=20, workers=2,
                 cache_url=f"sqlite:///{tmp_path}/answers.db")


def mixed_traffic(api, double):
    """Requests of every kind; return the replies of those that were questions, and of the others."""
    prompts = [new_prompt() for _ in range(6)]
    replies = together(12, lambda n: api.ask(prompts[n // 2], stream=n % 2 == 1))
    replies += [api.ask(prompt) for prompt in prompts[:3]]
    replies += [api.ask(prompts[0], NO_CACHE), api.ask(prompts[1], NO_STORE), api.ask(new_prompt(), max_tokens=2)]
    for fault in ("oom", "eof", "hang", "busy", "not_found", "reason_unknown"):
        replies += [api.ask(new_prompt(f"[[fault={fault}]]"), stream=stream) for stream in (False, True)]
    slow = new_prompt("[[ttft=0.3]]")
    replies += together(6, lambda n: api.ask(slow, stream=n % 2 == 1))
    replies += [api.ask(new_prompt(), {"Cache-Control": "only-if-cached"})]
    replies += [api.ask(new_prompt()) for _ in range(18)]
    others = [api.get("/livez"), api.get("/x"), api.request("PUT", "/generate"), api.ask_raw(b"{"),
              api.ask_raw(b"{}"), api.request("BREW", "/generate"), api.get("/cache")]
    return replies, others


def test_responses_log_and_metrics_add_up(api, double):
    """After traffic of every kind, each figure can be had in three ways, and they are equal to the last token."""
    before = api.metrics()
    replies, others = mixed_traffic(api, double)
    records = {record["request_id"]: record for record in map(api.record_of, replies + others)}
    after = until(lambda: settled(api))

    def grown(name, *labels):
        return sum(value - before.get(key, 0) for key, value in after.items()
                   if key[0] == name and set(labels) <= set(key[1:]))

    asked = [records[reply.headers["X-Request-ID"]] for reply in replies]
    results = Counter(record["cache"] for record in asked)
    assert {result: grown("cache_requests_total", result) for result in RESULTS} == {
        result: results[result] for result in RESULTS}
    assert sum(results.values()) == len(replies)

    saved = sum(record.get("output_tokens") or 0 for record in asked if record["cache"] in SAVING)
    assert grown("saved_tokens_total") == saved > 0
    spared = sum(record["saved_ms"] for record in asked if "saved_ms" in record) / 1000
    assert grown("saved_seconds_total") == pytest.approx(spared) and spared > 0
    answered = Counter(ANSWERED[record["cache"]] for record in asked if "error" not in record)
    assert {result: grown("answers_total", result) for result in set(ANSWERED.values())} == answered
    led = [record for record in asked if record["cache"] not in SAVING and record.get("output_tokens")]
    assert grown("generated_tokens_total") == sum(record["output_tokens"] for record in led)
    assert grown("prompt_tokens_total") == sum(record["input_tokens"] for record in led)

    slugs = Counter(record["error"] for record in records.values() if "error" in record)
    assert {slug: grown("errors_total", slug) for slug in slugs} == slugs and len(slugs) >= 7

    statuses = Counter((record["path"], str(record["status"])) for record in records.values()
                       if record["path"] == "/generate" and record["status"] != 405)  # which no endpoint has seen
    assert {key: grown("requests_total", *key) for key in statuses} == statuses
    assert grown("request_duration_seconds_count", "/generate") == sum(statuses.values())

    outcomes = {name: grown("generations_total", name) for name in ("stop", "length", "error", "cancelled")}
    assert outcomes["stop"] + outcomes["length"] == len(led) - 2 and outcomes["cancelled"] == 0
    assert outcomes["length"] == 1 and outcomes["error"] >= 12
    assert grown("inference_duration_seconds_count") == sum(outcomes.values()) == grown("queue_wait_seconds_count")
    assert (after["cache_entries",], api.total("ollama_up")) == (20, 1) and after["cache_bytes",] > 0
    assert after["cache_evictions_total",] > 0
    told = api.get("/cache").json
    assert (told["entries"], told["bytes"], told["collapsed"], told["evictions"]) == (
        after["cache_entries",], after["cache_bytes",], results["collapsed"], after["cache_evictions_total",])
    assert told["hits"] >= results["hit"] and told["misses"] >= results["miss"]


def settled(api):
    """The metrics once nothing is under way."""
    return api.metrics() if api.total("generations_running") == api.total("generations_waiting") == 0 else None


@pytest.fixture(scope="module")
def server(shared_double, shared_serve):
    return shared_serve(shared_double, timeout=20)


def test_the_exposition_is_prometheus_text_with_every_name(server):
    """Names llama_api_…, base units; and the type that the contract says."""
    server.ask(new_prompt())
    server.get("/x")
    reply = server.get("/metrics")
    assert reply.status == 200 and reply.headers["Content-Type"].startswith("text/plain; version=")
    families = list(text_string_to_metric_families(reply.body.decode()))
    names = {sample.name for family in families for sample in family.samples}
    assert {f"llama_api_{name}" for name in NAMES} <= names
    types = {family.name.removeprefix("llama_api_"): family.type for family in families}
    for name in ("request_duration_seconds", "inference_duration_seconds", "time_to_first_token_seconds",
                 "queue_wait_seconds"):
        assert types[name] == "histogram"
    for name in ("requests", "generations", "prompt_tokens", "generated_tokens", "saved_tokens", "cache_requests",
                 "cache_evictions", "errors", "failovers", "prefix_matches"):
        assert types[name] == "counter"
    for name in ("cache_entries", "cache_bytes", "generations_running", "generations_waiting", "ollama_up", "slots"):
        assert types[name] == "gauge"


def test_labels_are_bounded(server):
    """Invented paths, methods, ids and prompts create no series."""
    for n in range(3):
        server.get(f"/first{n}"), server.request("BREW", "/livez")
    known = set(server.metrics())
    for n in range(30):
        server.get(f"/made-up/{n}", headers={"X-Request-ID": f"id{n}"})
        server.request(f"BREW{n}", "/livez")
        server.request("GET", f"/livez?{n}")
        server.ask_raw(f'{{"prompt": "x", "field{n}": {n}}}', {**JSON, "User-Agent": f"agent{n}"})
    new = {key for key in set(server.metrics()) - known if not key[0].startswith(("request_duration", "errors_total"))}
    assert len(new) <= 4, new
    text = server.get("/metrics").body.decode()
    assert not any(word in text for word in ("made-up", "BREW", "field1", "agent1", "id1"))


def test_a_cancelled_generation_is_counted_as_that(server, shared_double):
    """Neither an error nor an answer."""
    before = server.metrics().get(("generations_total", "cancelled"), 0)
    with server.open_ask(new_prompt("[[ttft=30]]")):
        shared_double.wait(running=1)
        assert server.metrics()["generations_running", f"127.0.0.1:{shared_double.port}"] == 1
        with server.open_ask(new_prompt()):
            until(lambda: server.metrics()["generations_waiting",] == 1)
        until(lambda: server.metrics()["generations_waiting",] == 0)
    until(lambda: server.metrics().get(("generations_total", "cancelled"), 0) == before + 1)
    assert until(lambda: settled(server))
