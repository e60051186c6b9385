"""GET /stats over all workers and their deaths: equal to /metrics and to the log; flights listed and ended anywhere."""

import json
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from tests.support.gunicorn_server import JSON, new_prompt, together, until

KEY = "a-key-of-some-length"
GENERATED = {"miss", "refresh", "bypass"}


@pytest.fixture(scope="module")
def new_api(shared_double, serve, tmp_path_factory):
    """A function that starts two workers that share their answers."""
    def start():
        path = tmp_path_factory.mktemp("store") / "answers.db"
        return serve(shared_double, workers=2, parallel=4, timeout=20, cache_url=f"sqlite:///{path}")
    return start


@pytest.fixture(scope="module")
def server(new_api):
    return new_api()


@pytest.fixture
def double(double):
    double.set(slots=8)
    return double


@pytest.fixture
def fresh(new_api, double):
    """A service to which nothing has happened yet."""
    return new_api()


def stats(api):
    return api.get("/stats").json


def series(found, plot, name):
    """The points of a series."""
    return next(one["points"] for one in found["series"] if (one.get("plot"), one["name"]) == (plot, name))


def sums(found):
    """The total of each series of growth, by its plot and its name."""
    return {(one["plot"], one["name"]): sum(point for point in one["points"] if point is not None) * found["step"]
            for one in found["series"] if one["unit"].endswith("/s")}


def told(api, wanted):
    """Whether the series add up to what is wanted, to the microsecond."""
    found = sums(stats(api))
    return {name: found[name] for name in wanted} == pytest.approx(wanted, abs=1e-4)


def traffic(api):
    """Requests of every kind, as many as two workers share; returns their replies."""
    prompts = [new_prompt() for _ in range(6)]
    replies = together(12, lambda n: api.ask(prompts[n // 2], stream=n % 2 == 1))
    replies += [api.ask(prompt) for prompt in prompts]
    replies += [api.ask(prompts[0], {"Cache-Control": "no-cache"}), api.ask(new_prompt("[[fault=oom]]")),
                api.ask_raw(b"{"), api.get("/nowhere"), api.ask(new_prompt("[[fault=eof]]"), stream=True)]
    slow = new_prompt("[[ttft=0.4]]")
    return replies + together(6, lambda n: api.ask(slow, stream=n % 2 == 1))


def wanted(api, replies):
    """The totals according to the log, which the series must match."""
    records = [api.record_of(reply) for reply in replies]
    good = [record for record in records if "cache" in record and "error" not in record]

    def added(field, chosen):
        return sum(record.get(field) or 0 for record in records if chosen(record))

    return {
        ("Requests", "hit"): sum(record["cache"] in ("hit", "stale") for record in good),
        ("Requests", "joined"): sum(record["cache"] == "collapsed" for record in good),
        ("Requests", "generated"): sum(record["cache"] in GENERATED for record in good),
        ("Requests", "failed"): sum("error" in record for record in records),
        ("Tokens", "generated"): added("output_tokens", lambda record: record.get("cache") in GENERATED),
        ("Tokens", "saved"): added("output_tokens", lambda record: record.get("cache") not in GENERATED),
        ("Seconds saved and spent", "saved"): added("saved_ms", lambda record: True) / 1000}


def test_figures_equal_metrics_and_log_while_workers_die(fresh):
    """Over a mixed run in which each worker is killed, the one that samples among them, no event is lost or made up."""
    replies = []
    for victim in (*fresh.workers, None):
        replies += traffic(fresh)
        asked = wanted(fresh, replies)
        until(lambda: told(fresh, asked))
        if victim is not None:
            os.kill(victim, signal.SIGKILL)
            until(lambda: victim not in fresh.workers and len(fresh.workers) == 2)
    assert asked[("Requests", "joined")] and asked[("Requests", "failed")] == 12
    found, metrics = stats(fresh), fresh.metrics()
    counted = {("Requests", "failed"): sum(value for key, value in metrics.items() if key[0] == "errors_total"),
               ("Tokens", "generated"): metrics["generated_tokens_total",],
               ("Tokens", "saved"): metrics["saved_tokens_total",],
               ("Seconds saved and spent", "spent"): metrics["inference_duration_seconds_sum",]}
    assert {name: sums(found)[name] for name in counted} == pytest.approx(counted, abs=1e-4)
    for one in found["series"]:
        assert one["metric"].removeprefix("llama_api_") in {key[0].removesuffix("_bucket") for key in metrics}
        assert all(point is None or point >= 0 for point in one["points"]), one
    listed, logged = found["requests"], {record["request_id"]: record for record in map(fresh.record_of, replies)}
    assert [request["time"] for request in listed] == sorted((request["time"] for request in listed), reverse=True)
    assert {request["duration_ms"] for request in listed} <= {record["duration_ms"] for record in logged.values()}
    assert len(listed) == 50 and {request["endpoint"] for request in listed} >= {"/generate", "(unknown)"}


def test_the_past_survives_a_reload(fresh):
    """After SIGHUP the new workers know what the old ones did."""
    replies = traffic(fresh)
    until(lambda: told(fresh, {("Requests", "failed"): 4}))
    before = set(fresh.workers)
    fresh.signal(signal.SIGHUP)
    until(lambda: len(fresh.workers) == 2 and not before & set(fresh.workers))
    found = stats(fresh)
    assert sums(found)[("Requests", "failed")] == pytest.approx(4)
    known = {record["duration_ms"] for record in map(fresh.record_of, replies)}
    assert {request["duration_ms"] for request in found["requests"]} <= known


def test_the_last_requests_of_workers_that_end_are_listed(fresh):
    """At each of several reloads those that were answered just before it."""
    replies = []
    for _ in range(3):
        before = set(fresh.workers)
        replies += together(10, lambda n: fresh.ask(new_prompt()))
        fresh.signal(signal.SIGHUP)
        until(lambda: len(fresh.workers) == 2 and not before & set(fresh.workers))
    answered = {fresh.record_of(reply)["duration_ms"] for reply in replies}
    assert {request["duration_ms"] for request in stats(fresh)["requests"]} == answered


def test_flights_of_all_workers_are_listed_and_ended(api, double):
    """Any worker lists each once, with all its readers, and ends it; its readers get the error."""
    before = api.metrics()["generations_total", "cancelled"]
    shared, alone = new_prompt("[[ttft=60]]"), [new_prompt("[[ttft=60]]") for _ in range(3)]
    with ExitStack() as stack:
        readers = [stack.enter_context(api.open_ask(shared)) for _ in range(6)]
        readers += [stack.enter_context(api.open_ask(prompt)) for prompt in alone]
        double.wait(running=4)

        def listed():
            flights = stats(api)["flights"]
            return sorted(flight["readers"] for flight in flights) == [1, 1, 1, 6] and flights

        flights = until(listed)
        assert all(api.health()["queue"]["running"] == stats(api)["hosts"][0]["running"] == 4 for _ in range(8))
        assert until(lambda: all(listed() for _ in range(8)))
        assert {(flight["tokens"], flight["host"]) for flight in flights} == {(0, double.url.removeprefix("http://"))}
        assert {flight["state"] for flight in flights} <= {"loading", "writing"}
        ages = [flight["age_s"] for flight in flights]
        assert ages == sorted(ages, reverse=True) and ages[-1] >= 0
        for flight in flights:
            reply = api.request("DELETE", f"/flights/{flight['id']}")
            assert (reply.status, reply.body) == (204, b"")
            assert flight["id"] not in {left["id"] for _ in range(4) for left in stats(api)["flights"]}
        for reader in readers:
            assert reader.head.status == 503 and b"/problems/cancelled" in reader.read()
        double.wait(running=0)
    gone = api.request("DELETE", f"/flights/{flights[0]['id']}")
    assert (gone.status, gone.slug) == (404, "not-found")
    assert until(lambda: api.metrics()["generations_total", "cancelled"] == before + 4)


@pytest.mark.parametrize("path, nothing", [("/api/generate", {}), ("/api/chat", {"messages": []})])
def test_a_load_is_told_as_one(api, double, path, nothing):
    """A caller that wants only the load is listed as loading from the start, with its host."""
    double.set(load=60)
    with ThreadPoolExecutor(1) as pool:
        reply = pool.submit(api.request, "POST", path, json.dumps({"model": "llama3:8b", **nothing}), JSON)
        flight, = until(lambda: stats(api)["flights"])
        assert (flight["state"], flight["host"]) == ("loading", double.url.removeprefix("http://"))
        assert api.request("DELETE", f"/flights/{flight['id']}").status == 204
        assert reply.result().status == 503
    double.reset()
    assert until(lambda: all(stats(api)["flights"] == [] for _ in range(8)))


def test_flights_of_a_killed_worker_are_gone(api, double):
    """The flights of a dead worker are not listed, nor waited for when one is to be ended."""
    with ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(api.open_ask(new_prompt("[[ttft=60]]")))
        flights = until(lambda: len(found := stats(api)["flights"]) == 4 and found)
        for worker in api.workers:
            os.kill(worker, signal.SIGKILL)
        until(lambda: len(api.workers) == 2)
        until(lambda: stats(api)["flights"] == [])
        assert api.request("DELETE", f"/flights/{flights[0]['id']}").status == 404


def test_ids_that_are_none(api):
    """Anything else in place of an id is an unknown one."""
    for name in ("..", ".", "%2e%2e%2fx", "a" * 3000, "%00", "none"):
        reply = api.request("DELETE", f"/flights/{name}")
        assert (reply.status, reply.slug) == (404, "not-found"), name


def test_a_copy_is_good_until_something_happens(api):
    """With an ETag the same body is not sent again; no cache in between may keep it."""
    def unchanged():
        reply = api.get("/stats")
        again = api.get("/stats", headers={"If-None-Match": reply.headers["ETag"]})
        assert {"private", "no-cache"} == set(reply.headers["Cache-Control"].split(", "))
        assert reply.headers["Vary"] == "Authorization"
        return again.status == 304 and again.body == b"" and again.headers["ETag"] == reply.headers["ETag"]

    until(unchanged)
    etag = api.get("/stats").headers["ETag"]
    api.ask(new_prompt())
    until(lambda: api.get("/stats", headers={"If-None-Match": etag}).status == 200)
    assert api.request("HEAD", "/stats").status == 200


def test_what_only_looks_is_not_listed(fresh):
    """The page and probes ask every few seconds; the list is of those who want something."""
    fresh.ask(new_prompt())
    for path in "/livez /readyz /health /metrics /stats / /docs /problems/overloaded /page/x/y".split():
        fresh.get(path)
    until(lambda: [request["endpoint"] for request in stats(fresh)["requests"]] == ["/generate"])


def test_keys_and_limits(double, serve):
    """With keys both want one; looking is never limited; no secret is in it, nor a prompt."""
    api = serve(double, api_keys=KEY, rate_limit="2/hour", cache_url="memory://")
    key = {"Authorization": f"Bearer {KEY}"}
    assert api.get("/stats").slug == api.request("DELETE", "/flights/x").slug == "unauthorized"
    assert api.ask("A prompt to keep", {**JSON, **key}).status == 200
    found = [api.get("/stats", headers=key) for _ in range(5)][-1]
    assert found.status == 200 and KEY not in found.body.decode() and "to keep" not in found.body.decode()
    assert found.json["settings"]["LLAMA_API_API_KEYS"] == "***"
    assert found.json["settings"]["LLAMA_API_RATE_LIMIT"] == "2/hour"
    assert found.json["health"].keys() == api.health().keys()
    until(lambda: api.get("/stats", headers=key).json["hosts"] == api.health()["hosts"])
