"""Sharing from outside: collapsing, purging, surviving, in a process, over workers and hosts."""

import http.client
import json
import os
import signal
import sqlite3
import time
from collections import Counter
from contextlib import closing

import psutil
import pytest

from tests.support.double import answer_for
from tests.support.gunicorn_server import new_prompt, together, until
from tests.support.redis_server import RedisServer

MANY = 50
TAKEOVER = 5.0  # seconds in which the work of a killed process is taken over
EVERYWHERE = 1.0  # seconds in which all workers know of a purge
USED = 2.0  # seconds in which what was served counts as used everywhere
GONE = 2.0  # seconds in which an abandoned generation must stop
STORED_ONLY, NO_CACHE, NO_STORE = ({"Cache-Control": name} for name in ("only-if-cached", "no-cache", "no-store"))
JOINED = "llama-api; fwd=miss; collapsed"
STORES = ["sqlite", "redis"]


@pytest.fixture(scope="module")
def shared_redis(tmp_path_factory):
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(scope="module")
def server(shared_double, shared_serve):
    return shared_serve(shared_double, timeout=20)


@pytest.fixture(scope="module")
def pair_of(shared_double, shared_serve, shared_redis, tmp_path_factory):
    """A function that gives the servers of a store: one of two workers for sqlite, two of one worker for redis."""
    made = {}

    def pair(store):
        if store not in made:
            path = tmp_path_factory.mktemp("sqlite") / "answers.db"
            made[store] = (
                [patient(shared_serve, shared_double, workers=2, cache_url=f"sqlite:///{path}", parallel=4)]
                if store == "sqlite" else
                [patient(shared_serve, shared_double, cache_url=shared_redis.url, parallel=4) for _ in range(2)])
        return made[store]
    return pair


def patient(serve, double, **settings):
    """A server whose stores may take their time."""
    server = serve(double, start=False, **settings)
    server.application = "tests.support.slow_stores:app"
    return server.start()


@pytest.fixture
def double(double):
    double.set(slots=8)
    return double


@pytest.fixture(params=STORES)
def group(request, pair_of, double):
    """A function that sends its n-th call to the n-th process in turn (or to whichever worker takes it)."""
    servers = pair_of(request.param)
    return lambda n=0: servers[n % len(servers)]


# Within a process

def test_many_identical_requests_are_one_generation(api, double):
    """Plain and streamed together, at once: one call to Ollama, one answer for all, one of them not collapsed."""
    prompt = new_prompt("[[ttft=0.5]]")
    replies = together(2 * MANY, lambda n: api.ask(prompt, stream=n % 2 == 1))
    assert {(reply.status, reply.text) for reply in replies} == {(200, answer_for(prompt))}
    assert double.generations[prompt] == 1
    leaders = [reply for reply in replies if reply.cache != JOINED]
    assert [leader.cache.removesuffix("; stored") for leader in leaders] == ["llama-api; fwd=miss"]
    bodies = [reply.events[-1][1] if "event" in reply.headers["Content-Type"] else reply.json for reply in replies]
    assert not any(body["cached"] for body in bodies)


def test_a_failure_is_given_to_all_who_joined(api, double):
    """One call, one failure for each, streamed or plain; the next request is a new attempt."""
    prompt = new_prompt("[[fault=oom]] [[delay=0.5]]")
    replies = together(2 * MANY, lambda n: api.ask(prompt, stream=n % 2 == 1))
    assert {reply.slug for reply in replies} == {"ollama-error"} and double.generations[prompt] == 1
    assert len({reply.json["request_id"] for reply in replies}) == 2 * MANY
    api.ask(prompt)
    assert double.generations[prompt] == 2


def test_no_cache_joins_and_no_store_does_not(api, double):
    """A request for a new answer may share a generation under way; one for a private answer may not."""
    prompt = new_prompt("[[ttft=0.5]]")
    with api.open_ask(prompt) as leader:
        double.wait(running=1)
        joined, alone = together(2, lambda n: api.ask(prompt, (NO_CACHE, NO_STORE)[n]))
        assert leader.head.status == 200
    assert double.generations[prompt] == 2
    assert joined.cache == JOINED and alone.cache == "llama-api; fwd=bypass"


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
def test_a_leader_who_leaves_does_not_fail_the_others(api, double, stream):
    """Its generation goes on for those who joined."""
    prompt = new_prompt("[[ttft=0.7]]")
    leader = api.open_ask(prompt, stream=stream)
    double.wait(running=1)
    joiners = [api.open_ask(prompt, stream=not stream) for _ in range(5)]
    until(lambda: api.total("generations_running") == 1)
    leader.close()
    for joiner in joiners:
        with joiner:
            assert joiner.head.status == 200 and joiner.head.headers["Cache-Status"] == JOINED
            assert joiner.read()
    assert double.generations[prompt] == 1 and double.closed_early == 0
    assert api.ask(prompt, STORED_ONLY).text == answer_for(prompt)


def test_when_all_have_left_the_generation_ends(api, double):
    """The last of leader and joiners, streamed and plain, takes it along; nothing is stored, no slot is lost."""
    prompt = new_prompt("[[ttft=30]]")
    clients = [api.open_ask(prompt, stream=n % 2 == 1) for n in range(10)]
    double.wait(running=1)
    for client in clients[1:]:
        client.close()
    time.sleep(0.7)
    assert double.running == 1 and double.closed_early == 0
    clients[0].close()
    double.wait(GONE, running=0, closed_early=1)
    assert api.ask(prompt, STORED_ONLY).slug == "not-cached"
    assert api.ask(new_prompt()).status == 200 and double.generations[prompt] == 1


def test_whoever_comes_after_a_cancelled_generation_starts_anew(api, double):
    """It does not join what is being given up."""
    prompt = new_prompt("[[ttft=0.9]]")
    for _ in range(3):
        with api.open_ask(prompt):
            until(lambda: double.running == 1)
    reply = api.ask(prompt)
    assert reply.status == 200 and reply.text == answer_for(prompt)


def test_different_prompts_are_never_mixed_up(api, double):
    """A hundred at once, each asked twice: every client gets the text of its own prompt."""
    prompts = [new_prompt() for _ in range(MANY)]
    replies = together(2 * MANY, lambda n: api.ask(prompts[n // 2], stream=n % 2 == 1))
    assert [reply.text for reply in replies] == [answer_for(prompts[n // 2]) for n in range(2 * MANY)]
    assert all(double.generations[prompt] == 1 for prompt in prompts)


# Over workers and hosts

def test_an_answer_of_one_is_a_hit_for_all(group, double):
    """Whichever worker or host is asked."""
    prompt = new_prompt()
    assert group(0).ask(prompt).cache == "llama-api; fwd=miss; stored"
    replies = [group(n).ask(prompt) for n in range(1, 9)]
    assert {(reply.cache, reply.text) for reply in replies} == {("llama-api; hit", answer_for(prompt))}
    assert double.generations[prompt] == 1


def test_identical_requests_everywhere_are_one_generation(group, double):
    """Plain and streamed, spread over all processes at once."""
    prompt = new_prompt("[[ttft=0.7]]")
    replies = together(2 * MANY, lambda n: group(n).ask(prompt, stream=n % 4 > 1))
    assert {(reply.status, reply.text) for reply in replies} == {(200, answer_for(prompt))}
    assert double.generations[prompt] == 1
    kinds = Counter(reply.cache.removesuffix("; stored") for reply in replies)
    assert kinds["llama-api; fwd=miss"] == 1 and kinds.keys() <= {"llama-api; fwd=miss", JOINED, "llama-api; hit"}
    assert kinds[JOINED] >= MANY // 2


def test_a_failure_is_one_failure_everywhere(group, double):
    """It is not repeated once per process."""
    prompt = new_prompt("[[fault=oom]] [[delay=0.7]]")
    replies = together(MANY, lambda n: group(n).ask(prompt, stream=n % 4 > 1))
    assert {reply.slug for reply in replies} == {"ollama-error"} and double.generations[prompt] == 1


def test_when_all_have_left_everywhere_the_generation_ends(group, double):
    """The followers of other processes count as much as the leader's own clients."""
    prompt = new_prompt("[[ttft=30]]")
    clients = [group(n).open_ask(prompt, stream=n % 4 > 1) for n in range(8)]
    double.wait(running=1)
    time.sleep(0.3)
    for client in clients:
        client.close()
    double.wait(GONE + 0.5, running=0, closed_early=1)  # which of them went last is known half a second later


def test_a_leader_who_leaves_does_not_fail_those_elsewhere(group, double):
    """The clients of the other processes get the answer that was begun."""
    prompt = new_prompt("[[ttft=0.8]]")
    with group(0).open_ask(prompt):
        double.wait(running=1)
        others = [group(n).open_ask(prompt) for n in range(1, 6)]
        time.sleep(0.3)
    for other in others:
        with other:
            assert other.head.status == 200 and other.read()
    assert double.generations[prompt] == 1 and double.closed_early == 0


def test_a_renewal_and_a_purge_are_everywhere_within_a_second(group, double):
    """The new answer replaces the old one in every process; what is purged is served by none; all agree on that."""
    renewed, purged = new_prompt(), new_prompt()
    for n in range(8):
        group(n).ask(renewed), group(n).ask(purged)
    double.set(tokens=5)
    new = group(0).ask(renewed, NO_CACHE).text
    until(lambda: {group(n).ask(renewed).text for n in range(12)} == {new}, EVERYWHERE)
    assert double.generations[renewed] == 2
    for n in range(8):
        group(n).ask(purged)
    assert group(0).request("DELETE", "/cache").status == 204
    until(lambda: {group(n).ask(purged, STORED_ONLY).status for n in range(12)} == {504}, EVERYWHERE)
    assert {group(n).get("/cache").json["entries"] for n in range(8)} == {0}
    assert {group(n).health()["cache_size"] for n in range(8)} == {0}


def test_the_figures_are_the_stores(group, double):
    """entries, bytes and cache_size are those of the shared store, from any process."""
    group(0).request("DELETE", "/cache")
    for n in range(6):
        group(n).ask(new_prompt())
    told = [group(n).get("/cache").json for n in range(4)]
    assert {(one["entries"], one["store"]) for one in told} == {(6, group(0).settings["cache_url"].split(":")[0])}
    assert len({one["bytes"] for one in told}) == 1 and told[0]["bytes"] > 6 * 20
    assert {group(n).health()["cache_size"] for n in range(4)} == {6}


def test_a_killed_server_is_replaced_and_its_answers_survive(serve, double, redis_server):
    """kill -9 of the host that generates: the other takes over in time. What it had stored is still there."""
    leader, other = (serve(double, cache_url=redis_server.url) for _ in range(2))
    kept, prompt = new_prompt(), new_prompt()
    assert leader.ask(kept).cache.endswith("stored")
    double.set(ttft=30)
    with leader.open_ask(prompt):
        double.wait(running=1)
        with other.open_ask(prompt) as follower, other.open_ask(prompt, stream=True) as streamed:
            time.sleep(0.3)
            double.set(ttft=0)
            leader.kill()
            until(lambda: double.generations[prompt] == 2, TAKEOVER)
            assert follower.head.status == 200 and streamed.head.status == 200
            assert json.loads(follower.read())["response"] == answer_for(prompt)
    assert double.generations[prompt] == 2
    again = leader.start()
    assert [again.ask(one, STORED_ONLY).text for one in (kept, prompt)] == [answer_for(kept), answer_for(prompt)]


def test_a_killed_worker_is_replaced_and_the_other_takes_over(serve, double, tmp_path):
    """Its own clients see a disconnect, those of the other get the answer; two work again, and all survives a kill."""
    api = serve(double, workers=2, cache_url=f"sqlite:///{tmp_path}/answers.db", parallel=2)
    prompt, clients = new_prompt(), []
    double.set(ttft=30)

    def both_have_clients():
        clients.append(api.open_ask(prompt))
        return all(connections(worker, api.port, "laddr") for worker in api.workers)
    until(both_have_clients)
    double.wait(running=1)
    seen = dict.fromkeys(api.workers, 0)
    for _ in range(20):  # a probe of the other one may be under way at any single look
        for worker in seen:
            seen[worker] += connections(worker, double.port, "raddr")
        time.sleep(0.05)
    leader = max(seen, key=seen.get)
    double.set(ttft=0)
    os.kill(leader, signal.SIGKILL)
    killed = time.monotonic()
    assert {answered(client) for client in clients} == {None, answer_for(prompt)}
    assert time.monotonic() - killed < TAKEOVER and double.generations[prompt] == 2
    until(lambda: len(api.workers) == 2 and leader not in api.workers)
    assert {api.ask(new_prompt()).status for _ in range(6)} == {200}
    api.kill()
    assert api.start().ask(prompt, STORED_ONLY).text == answer_for(prompt)


def connections(worker, port, end):
    """How many connections a process has whose local (laddr) or remote (raddr) end is ``port``."""
    found = psutil.Process(worker).net_connections()
    return sum(one.status == psutil.CONN_ESTABLISHED and getattr(one, end).port == port for one in found)


def answered(client):
    """The text that a client got, None when its connection broke."""
    with client:
        try:
            return json.loads(client.read())["response"]
        except (OSError, http.client.HTTPException):
            return None


# A purge


@pytest.fixture(params=["memory", *STORES])
def anywhere(request, double):
    """As ``group``, and a service without a store too."""
    if request.param == "memory":
        server = request.getfixturevalue("server")
        return lambda n=0: server
    servers = request.getfixturevalue("pair_of")(request.param)
    return lambda n=0: servers[n % len(servers)]


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
def test_a_generation_of_before_a_purge_is_not_stored(anywhere, double, stream):
    """Its callers get their answer, wherever they are and wherever the purge was; later requests do not."""
    prompt = new_prompt("[[ttft=1.5]]")
    callers = [anywhere(n).open_ask(prompt, stream=stream) for n in range(4)]
    double.wait(running=1)
    time.sleep(0.3)
    assert anywhere(1).request("DELETE", "/cache").status == 204
    for caller in callers:
        with caller:
            assert caller.head.status == 200 and answer_for(prompt).split()[-1] in caller.read().decode()
    assert double.generations[prompt] == 1
    assert {anywhere(n).ask(prompt, STORED_ONLY).slug for n in range(6)} == {"not-cached"}
    assert {anywhere(n).get("/cache").json["entries"] for n in range(4)} == {0}


def test_whoever_comes_after_a_purge_does_not_join_what_was_before(anywhere, double):
    """It is a generation of its own, once for all who come, and that is stored."""
    prompt = new_prompt("[[ttft=2.5]]")
    before = anywhere(0).open_ask(prompt)
    double.wait(running=1)
    assert anywhere(1).request("DELETE", "/cache").status == 204
    time.sleep(EVERYWHERE)
    double.set(ttft=0)
    after = together(8, lambda n: anywhere(n).ask(prompt))
    assert {reply.text for reply in after} == {answer_for(prompt)} and double.generations[prompt] == 2
    with before:
        assert before.head.status == 200 and before.read()
    assert {anywhere(n).ask(prompt, STORED_ONLY).status for n in range(6)} == {200}


def test_after_a_purge_no_answer_is_left_in_the_files_rows(pair_of, double, tmp_path):
    """Neither an entry nor what came of a generation."""
    api, = pair_of("sqlite")
    prompt = new_prompt("[[ttft=0.3]]")
    together(8, lambda n: api.ask(prompt))
    assert answer_for(prompt).encode() in rows_of(api)
    api.request("DELETE", "/cache")
    until(lambda: answer_for(prompt).encode() not in rows_of(api), EVERYWHERE)


def rows_of(api):
    """The content of the live rows of a server's SQLite file."""
    with closing(sqlite3.connect(api.settings["cache_url"].removeprefix("sqlite:///"))) as db:
        tables = [name for name, in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return b" ".join(value if isinstance(value, bytes) else str(value).encode()
                         for table in tables for row in db.execute(f"SELECT * FROM {table}") for value in row)


# Use


@pytest.mark.parametrize("workers", [1, 2])
def test_what_is_served_stays_and_what_is_not_goes(serve, double, tmp_path, workers):
    """Hits count as use in the store's order, also those that the store itself answers."""
    api = patient(serve, double, workers=workers, cache_url=f"sqlite:///{tmp_path}/answers.db", cache_max_entries=3)
    kept, unused, recent, new = (new_prompt() for _ in range(4))
    for prompt in (kept, unused, recent):
        api.ask(prompt)
    for _ in range(2):
        time.sleep(1.6)
        assert api.ask(kept).cache == "llama-api; hit"
    time.sleep(USED)
    api.ask(new)
    assert [api.ask(prompt, STORED_ONLY).status for prompt in (kept, unused, recent, new)] == [200, 504, 200, 200]


# A store that fails

def test_redis_killed_or_stopped_never_fails_a_request(serve, double, redis_server):
    """Each goes on with its own cache, warns once, says it is degraded, and uses Redis again when it is back."""
    api = serve(double, cache_url=redis_server.url)
    known, prompt = new_prompt(), new_prompt()
    api.ask(known)
    redis_server.pause()
    replies = [api.ask(one) for one in (known, prompt, prompt, known)]
    assert [reply.status for reply in replies] == [200] * 4
    assert [reply.text for reply in replies[1:]] == [answer_for(prompt)] * 2 + [answer_for(known)]
    assert double.generations[prompt] == double.generations[known] == 1
    assert api.get("/cache").status == 200 and api.request("DELETE", "/cache").status == 204
    redis_server.resume()
    until(lambda: api.health()["status"] == "healthy", 10)
    redis_server.kill()
    other = new_prompt()
    assert [api.ask(other, stream=stream).text for stream in (False, True)] == [answer_for(other)] * 2
    assert double.generations[other] == 1 and api.health()["status"] == "degraded" and api.health()["reason"]
    assert api.get("/health").status == 200
    assert len([record for record in api.records if record["level"] == "WARNING" and "store" in record["message"]]) == 1
    assert api.metrics()["store_errors_total",] >= 1
    redis_server.start()
    until(lambda: api.health()["status"] == "healthy", 10)
    last = new_prompt()
    api.ask(last)
    assert api.get("/cache").json["entries"] == 1


def test_a_sqlite_that_another_holds_locked_fails_no_request_and_costs_no_answer(serve, double, tmp_path):
    """A process serves its own copies and generates new answers; once the lock is free, the store is used again."""
    path = tmp_path / "answers.db"
    api = serve(double, cache_url=f"sqlite:///{path}")
    known, new = new_prompt(), new_prompt()
    api.ask(known)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        time.sleep(1.1)
        replies = together(20, lambda n: api.ask((known, new)[n % 2]))
        assert {reply.text for reply in replies} == {answer_for(known), answer_for(new)}
        assert [api.ask(prompt).cache for prompt in (known, new)] == ["llama-api; hit"] * 2
        other.execute("ROLLBACK")
    assert double.generations[known] == double.generations[new] == 1
    until(lambda: api.health()["status"] == "healthy")
    stored_again(api, path)


def test_sqlite_deleted_or_corrupt_never_fails_a_request(serve, double, tmp_path):
    """A store whose file goes, or is written over, is created again; answers come all the same."""
    path = tmp_path / "answers.db"
    api = serve(double, cache_url=f"sqlite:///{path}")
    known = new_prompt()
    api.ask(known)
    for name in tmp_path.glob("answers.db*"):
        name.unlink()
    assert api.ask(known).text == answer_for(known)
    stored_again(api, path)
    garbage = os.urandom(100_000)
    for name in (path, path.with_name("answers.db-wal")):
        if name.exists():
            name.write_bytes(garbage)
    assert api.ask(known).text == answer_for(known)
    stored_again(api, path)


def stored_again(api, path):
    """Until new answers are in the file again, every request is answered."""
    def stored():
        prompt = new_prompt()
        assert api.ask(prompt).text == answer_for(prompt)
        try:
            with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as database:
                return database.execute("SELECT count(*) FROM entries").fetchone()[0] > 0
        except sqlite3.Error:
            return False
        finally:
            if "database" in locals():
                database.close()
    until(stored, 10)


def test_a_store_that_is_down_at_the_start_is_used_when_it_comes(serve, double, redis_server):
    """The service starts without it and fails no request; then its answers are shared."""
    redis_server.kill()
    api = serve(double, cache_url=redis_server.url)
    prompt = new_prompt()
    assert [api.ask(prompt).text for _ in range(2)] == [answer_for(prompt)] * 2 and double.generations[prompt] == 1
    redis_server.start()
    until(lambda: (api.ask(new_prompt()).status == 200 and api.health()["status"] == "healthy"), 10)
    api.ask(new_prompt())
    assert api.get("/cache").json["entries"] >= 1


def test_no_prompt_reaches_a_store_as_a_key(pair_of, double, shared_redis):
    """Keys are digests under a prefix of ours."""
    prompt = "Confidential" + new_prompt()
    pair_of("redis")[0].ask(prompt)
    with shared_redis.client() as client:
        keys = [key.decode() for key in client.keys()]
        values = b" ".join(client.dump(key) or b"" for key in keys)
    assert keys and all(key.startswith("llama_api:") for key in keys)
    assert "Confidential" not in " ".join(keys) and b"Confidential" not in values
