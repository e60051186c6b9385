"""The cache from outside: what is one entry, how long it is fresh, what a request may ask of it."""

import itertools
import time

import pytest

from tests.support.double import answer_for
from tests.support.gunicorn_server import new_prompt, until

NO_CACHE, NO_STORE = {"Cache-Control": "no-cache"}, {"Cache-Control": "no-store"}
STORED_ONLY = {"Cache-Control": "only-if-cached"}
HIT, MISS = "llama-api; hit", "llama-api; fwd=miss; stored"
TTL, STALE = 1, 2


@pytest.fixture(scope="module")
def server(shared_double, shared_serve):
    return shared_serve(shared_double)


@pytest.fixture(scope="module")
def small_server(shared_double, shared_serve):
    return shared_serve(shared_double, cache_max_entries=10, cache_max_bytes=40_000)


@pytest.fixture(scope="module")
def dated_server(shared_double, shared_serve):
    return shared_serve(shared_double, cache_ttl=TTL, cache_stale_if_error=STALE, timeout=0.5)


@pytest.fixture
def small(small_server, double):
    small_server.request("DELETE", "/cache")
    return small_server


@pytest.fixture
def dated(dated_server, double):
    return dated_server


def aged(api, prompt, seconds):
    """Wait until the entry of ``prompt`` is so old; it is fresh all the while."""
    until(lambda: int(api.ask(prompt).headers["Age"]) >= seconds)


ONE_ENTRY = [
    {"max_tokens": 100}, {"max_tokens": 100.0}, {"max_tokens": None}, {"temperature": 0.7}, {"temperature": 0.70},
    {"temperature": None}, {"stop": []}, {"stop": None}, {"system": ""}, {"system": None}, {"seed": None},
    {"top_p": None}, {"top_k": None}, {"stream": False}, {"stream": None}, {"stream": True},
    {"stream": True, "temperature": 0.7, "max_tokens": 100}]
ENTRIES = [
    {}, {"max_tokens": 99}, {"temperature": 0}, {"temperature": 0.71}, {"system": "x"}, {"system": " "}, {"stop": "x"},
    {"stop": ["x", "y"]}, {"stop": ["y", "x"]}, {"stop": "xy"}, {"seed": 0}, {"seed": 1}, {"top_p": 1},
    {"top_p": 0.9}, {"top_k": 1}, {"top_k": 2}]


def test_equal_questions_are_one_entry(api, double):
    """However they are written: defaults left out or not, numbers in any form, streamed or plain."""
    prompt = new_prompt()
    assert api.ask(prompt).cache == MISS
    for fields in ONE_ENTRY:
        assert api.ask(prompt, **fields).cache == HIT, fields
    assert api.ask_raw(f'{{"temperature": 7e-1, "stream": false, "prompt": "{prompt}"}}').cache == HIT
    assert double.generations[prompt] == 1


def test_a_single_stop_is_a_list_of_one(api):
    """And a temperature of minus zero is zero."""
    prompt = new_prompt()
    for first, second in ({"stop": "x"}, {"stop": ["x"]}), ({"temperature": 0}, {"temperature": -0.0}):
        assert (api.ask(prompt, **first).cache, api.ask(prompt, **second).cache) == (MISS, HIT)


def test_questions_that_differ_in_anything_never_share(api, double):
    """Each has its own generation, and afterwards its own hit."""
    prompt = new_prompt()
    for fields in [*ENTRIES, {"prompt": f"{prompt} "}, {"prompt": prompt.upper()}]:
        asked = {"prompt": prompt, **fields}
        assert api.ask(**asked).cache == MISS, fields
        assert api.ask(**asked).cache == HIT, fields
    assert double.generations[prompt] == len(ENTRIES)


def test_a_hit_has_its_age(api):
    """Age counts from the generation; without a TTL nothing is said of one."""
    prompt = new_prompt()
    miss = api.ask(prompt)
    assert miss.cache == MISS and miss.headers["Age"] is None
    assert (api.ask(prompt).cache, api.ask(prompt).headers["Age"]) == (HIT, "0")
    aged(api, prompt, 1)


FLOWS = [  # Cache-Control of a request for a fresh entry, what its Cache-Status says, what the next request finds
    ("", HIT, HIT), ("no-cache", "llama-api; fwd=request; stored", HIT), ("no-store", "llama-api; fwd=bypass", HIT),
    ("only-if-cached", HIT, HIT), ("max-age=1000", HIT, HIT), ("max-age=0", "llama-api; fwd=request; stored", HIT),
    ("No-Cache", "llama-api; fwd=request; stored", HIT), ("no-cache, no-store", "llama-api; fwd=bypass", HIT),
    ("no-store, max-age=1000", "llama-api; fwd=bypass", HIT), ("max-age=1000, only-if-cached", HIT, HIT),
    ("max-stale, min-fresh=5, made-up, also=\"a, no-cache\"", HIT, HIT), ("max-age", HIT, HIT), ("max-age=x", HIT, HIT),
    ("no-transform,no-cache", "llama-api; fwd=request; stored", HIT), ("not-no-cache", HIT, HIT), (",,", HIT, HIT),
    ("private, max-age=\"1000\"", HIT, HIT), ("max-age=99999999999999999999", HIT, HIT)]


@pytest.mark.parametrize("directives, told, after", FLOWS)
def test_a_request_says_what_it_wants_of_the_cache(api, double, directives, told, after):
    """The table of directives, alone and together, in any case; what is unknown is ignored."""
    prompt = new_prompt()
    api.ask(prompt)
    if directives == "max-age=0":
        time.sleep(0.002)
    reply = api.ask(prompt, {"Cache-Control": directives})
    assert reply.cache == told and reply.text == answer_for(prompt)
    assert reply.json["cached"] == (told == HIT)
    assert api.ask(prompt).cache == after
    assert double.generations[prompt] == (1 if told == HIT else 2)


@pytest.mark.parametrize("directives, told, after", [
    ("no-cache", "llama-api; fwd=request; stored", HIT), ("no-store", "llama-api; fwd=bypass", MISS),
    ("max-age=5", MISS, HIT), ("max-age=0", MISS, HIT)])
def test_a_request_for_what_is_not_stored_is_generated(api, directives, told, after):
    """Whatever its Cache-Control; only no-store leaves nothing there."""
    prompt = new_prompt()
    assert (api.ask(prompt, {"Cache-Control": directives}).cache, api.ask(prompt).cache) == (told, after)


@pytest.mark.parametrize("directives", ["only-if-cached", "only-if-cached, max-age=5", "only-if-cached, no-cache",
                                        "only-if-cached, no-store"])
@pytest.mark.parametrize("stream", [False, True])
def test_only_if_cached_never_generates(api, double, directives, stream):
    """A miss is 504 not-cached, streamed or plain, and Ollama hears nothing."""
    prompt = new_prompt()
    reply = api.ask(prompt, {"Cache-Control": directives}, stream=stream)
    assert (reply.status, reply.slug) == (504, "not-cached") and double.generations[prompt] == 0


def test_max_age_refuses_what_is_older(api, double):
    """An entry up to that age is accepted; for an older one there is a new generation, which is stored."""
    prompt = new_prompt()
    api.ask(prompt)
    aged(api, prompt, 1)
    assert api.ask(prompt, {"Cache-Control": "max-age=1, only-if-cached"}).slug == "not-cached"
    assert api.ask(prompt, {"Cache-Control": "max-age=60"}).cache == HIT
    assert api.ask(prompt, {"Cache-Control": "max-age=1"}).cache == "llama-api; fwd=request; stored"
    assert api.ask(prompt).headers["Age"] == "0" and double.generations[prompt] == 2


def test_no_cache_renews_the_entry(api, double):
    """The new answer is what the next one gets."""
    prompt = new_prompt()
    double.set(tokens=5)
    old = api.ask(prompt).text
    double.set(tokens=6)
    new = api.ask(prompt, NO_CACHE).text
    assert old != new == api.ask(prompt).text and api.ask(prompt).cache == HIT


def test_a_failure_leaves_the_entry_there_was(api, double):
    """no-cache that fails is a failure, and the fresh entry is as good as before."""
    prompt = new_prompt()
    api.ask(prompt)
    double.fail("oom")
    assert api.ask(prompt, NO_CACHE).slug == "ollama-error"
    assert api.ask(prompt, {"Cache-Control": "max-age=0"}).slug == "ollama-error"
    assert api.ask(prompt).cache == HIT


def test_only_prompts_go_into_the_cache(api):
    """No other response has a Cache-Status, nor has an error that nothing was looked up for."""
    for method, path in (("GET", "/livez"), ("GET", "/health"), ("GET", "/cache"), ("GET", "/metrics"), ("GET", "/x")):
        assert api.request(method, path).cache is None
    assert api.ask_raw(b"{").cache is None


# The life of an entry with a TTL

def test_a_fresh_entry_tells_its_time_to_live(dated):
    """ttl counts down from CACHE_TTL."""
    prompt = new_prompt()
    assert dated.ask(prompt).cache == MISS
    assert dated.ask(prompt).cache in ("llama-api; hit; ttl=0", "llama-api; hit; ttl=1")
    assert dated.ask(prompt, stream=True).cache.startswith("llama-api; hit; ttl=")


def grown_stale(api, double, *prompts):
    """Generate the answers to ``prompts`` and wait until they are past their freshness."""
    for prompt in prompts:
        api.ask(prompt)
    until(lambda: {api.ask(prompt, STORED_ONLY).status for prompt in prompts} == {504})
    assert all(double.generations[prompt] == 1 for prompt in prompts)


FAILURES = [("oom", "ollama-error"), ("busy", "overloaded"), ("not_found", "model-not-found"),
            ("hang", "ollama-timeout"), ("eof_at_once", "ollama-error")]


def test_a_stale_entry_is_served_while_ollama_fails(dated, double):
    """With its age and the slug of the failure, streamed or plain; until it is too stale; never against directives."""
    prompt, fault_of = new_prompt(), itertools.cycle(FAILURES)
    grown_stale(dated, double, prompt)
    for stream, (fault, slug) in zip((False, True, False, True), fault_of):
        double.fail(fault)
        reply = dated.ask(prompt, stream=stream)
        assert (reply.status, reply.cache) == (200, f"llama-api; fwd=stale; detail={slug}")
        assert int(reply.headers["Age"]) >= 1 and reply.text == answer_for(prompt)
        last = reply.events[-1][1] if stream else reply.json
        assert last["cached"] is True and last["metrics"]["tokens_per_second"] is None
    double.fail("oom")
    assert dated.ask(prompt, STORED_ONLY).slug == "not-cached"
    assert dated.ask(prompt, NO_CACHE).slug == "ollama-error"
    assert dated.ask(prompt, NO_STORE).slug == "ollama-error"
    assert dated.ask(prompt, {"Cache-Control": "max-age=0"}).slug == "ollama-error"
    assert dated.ask(prompt, {"Cache-Control": "max-age=60"}).cache == "llama-api; fwd=stale; detail=ollama-error"
    until(lambda: dated.ask(prompt).status == 502, TTL + STALE + 3)


def test_a_stale_entry_is_renewed_or_serves_or_does_not(dated, double):
    """Renewed when Ollama answers; served when it is gone; never for a prompt too long, nor after a first piece."""
    anew, gone, long, broken = prompts = [new_prompt() for _ in range(4)]
    grown_stale(dated, double, *prompts)
    reply = dated.ask(anew)
    assert reply.cache == "llama-api; fwd=stale; stored" and reply.json["cached"] is False
    assert dated.ask(anew).cache.startswith("llama-api; hit; ttl=") and double.generations[anew] == 2
    double.fail("eof")
    assert dated.ask(broken, stream=True).events[-1][0] == "error"
    assert dated.ask(broken).cache == "llama-api; fwd=stale; detail=ollama-error"
    double.fail()
    double.set(num_ctx=2)
    assert dated.ask(long).slug == "prompt-too-long"
    double.stop()
    reply = dated.ask(gone)
    double.start()
    assert (reply.status, reply.cache) == (200, "llama-api; fwd=stale; detail=ollama-unavailable")


def test_another_build_of_the_model_makes_its_entries_stale(own_double, serve):
    """Within five seconds of the change of its digest; the old answer serves while Ollama fails."""
    api, prompts = serve(own_double), [new_prompt() for _ in range(3)]
    for prompt in prompts:
        api.ask(prompt)
    own_double.set_digest("llama3:8b")
    until(lambda: api.ask(prompts[0]).cache == "llama-api; fwd=stale; stored", 5)
    assert api.ask(prompts[0]).cache == HIT
    assert api.ask(prompts[1], STORED_ONLY).slug == "not-cached"
    own_double.fail("oom")
    assert api.ask(prompts[1]).cache == "llama-api; fwd=stale; detail=ollama-error"
    own_double.fail()
    assert api.ask(prompts[2]).cache == "llama-api; fwd=stale; stored"


# Its bounds

def stats(api):
    return api.get("/cache").json


def test_the_least_recently_used_is_evicted(small):
    """Served counts as used, and so does written; GET /cache counts what went."""
    evicted = stats(small)["evictions"]
    first, second, third, *others = prompts = [new_prompt() for _ in range(10)]
    more = [new_prompt() for _ in range(3)]
    for prompt in (*prompts, first, more[0]):
        small.ask(prompt)
    stored = [prompt for prompt in (*prompts, more[0]) if small.ask(prompt, STORED_ONLY).status == 200]
    assert stored == [first, third, *others, more[0]]
    small.ask(first, NO_CACHE)
    for prompt in more[1:]:
        small.ask(prompt)
    stored = [prompt for prompt in (*prompts, *more) if small.ask(prompt, STORED_ONLY).status == 200]
    assert stored == [first, *others[1:], *more]
    assert (stats(small)["entries"], stats(small)["evictions"] - evicted) == (10, 3)


def test_an_answer_larger_than_an_eighth_is_not_stored(small, double):
    """It is given, and not said to be stored; the others stay."""
    small_one, big = new_prompt(), new_prompt("[[tokens=3000]]")
    small.ask(small_one)
    for _ in range(2):
        reply = small.ask(big, max_tokens=4000)
        assert reply.cache == "llama-api; fwd=miss" and len(reply.text) > 10_000
    assert double.generations[big] == 2 and small.ask(small_one).cache == HIT


def test_the_bytes_are_bounded_and_count_the_overhead(small):
    """The figures of GET /cache; a purge leaves none."""
    assert (stats(small)["entries"], stats(small)["bytes"]) == (0, 0)
    for _ in range(15):
        assert small.ask(new_prompt("[[tokens=150]]"), max_tokens=200).cache == MISS
    held = stats(small)
    assert 30_000 < held["bytes"] <= held["max_bytes"] == 40_000 and held["entries"] < held["max_entries"] == 10
    assert small.request("DELETE", "/cache").status == 204
    assert (stats(small)["entries"], stats(small)["bytes"], small.health()["cache_size"]) == (0, 0, 0)


def test_a_purge_forgets_everything(api, double):
    """204 without a body, and what was a hit is a miss."""
    prompts = [new_prompt() for _ in range(3)]
    for prompt in prompts:
        api.ask(prompt)
    reply = api.request("DELETE", "/cache")
    assert (reply.status, reply.body) == (204, b"")
    assert [api.ask(prompt, STORED_ONLY).slug for prompt in prompts] == ["not-cached"] * 3


def test_the_statistics_add_up(double, serve):
    """Hits, misses, collapsed and the ratio of a server that has just begun; entries as in /health."""
    api = serve(double)
    prompts = [new_prompt() for _ in range(4)]
    assert api.get("/cache").json == {
        "store": "memory", "entries": 0, "bytes": 0, "max_entries": 1000, "max_bytes": 67108864, "hits": 0, "misses": 0,
        "collapsed": 0, "evictions": 0, "hit_ratio": 0}
    for prompt in prompts * 3:
        api.ask(prompt)
    told = api.get("/cache").json
    assert (told["entries"], told["hits"], told["misses"], told["collapsed"]) == (4, 8, 4, 0)
    assert told["hit_ratio"] == pytest.approx(8 / 12, abs=0.001) and api.health()["cache_size"] == 4
    assert told["bytes"] > sum(len(answer_for(prompt).encode()) for prompt in prompts)


def test_without_a_cache_everything_bypasses_it(double, serve):
    """CACHE_MAX_ENTRIES=0: every request is generated, identical ones too, and only-if-cached has nothing."""
    api, prompt = serve(double, cache_max_entries=0), new_prompt()
    for headers in ({}, {}, NO_CACHE, NO_STORE, {"Cache-Control": "max-age=5"}):
        assert api.ask(prompt, headers).cache == "llama-api; fwd=bypass"
    assert api.ask(prompt, stream=True).cache == "llama-api; fwd=bypass"
    assert api.ask(prompt, STORED_ONLY).slug == "not-cached" and double.generations[prompt] == 6
    assert api.get("/cache").json["entries"] == 0
