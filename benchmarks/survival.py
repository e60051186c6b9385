"""Counts rather than times: ``python -m benchmarks.survival [storms|kills|outages]``.

Storms of identical requests and their calls to the upstream; a server killed again and again while it writes to SQLite;
a Redis that is killed, paused and started again under load.
"""

import concurrent.futures
import pathlib
import sqlite3
import statistics
import sys
import tempfile
import threading
import time
from contextlib import closing

from tests.support.double import OllamaDouble, answer_for
from tests.support.gunicorn_server import new_prompt, servers, together, until
from tests.support.redis_server import RedisServer

STORM, KILLS, WRITERS = 200, 50, 8


def row(*cells):
    """Print one row of a table."""
    print("| " + " | ".join(str(cell) for cell in cells) + " |", flush=True)


def storm(double, hosts, prompt, each=STORM, during=None):
    """``each`` plain and as many streamed requests for one prompt at once, spread over ``hosts``."""
    before, began = double.requests, time.monotonic()
    if during is not None:
        threading.Timer(0.7, during).start()

    def one(number):
        try:
            reply = hosts[number % len(hosts)].ask(prompt, stream=number % 2 == 1, timeout=60)
            return reply.status if reply.status != 200 or reply.text == answer_for(prompt) else "WRONG"
        except (OSError, EOFError, AssertionError):
            return "broken off"

    outcomes = together(2 * each, one)
    calls = len([call for call in double.calls("/api/generate") if call.json["prompt"] == prompt])
    counted = ", ".join(f"{outcomes.count(kind)} × {kind}" for kind in sorted(set(outcomes), key=str))
    assert double.requests >= before
    return calls, counted, round(time.monotonic() - began, 2)


def storms(home):
    """200 plain and 200 streamed identical requests at once, in every setting."""
    row("storm of 200 plain + 200 streamed", "upstream calls", "outcomes", "seconds")
    row("---", "---", "---", "---")
    with OllamaDouble() as double, RedisServer(home) as redis, servers(home) as serve:
        single = serve(double)
        row("one worker", *storm(double, [single], new_prompt("[[ttft=1]]")))
        row("upstream fails", *storm(double, [single], new_prompt("[[delay=1]] [[fault=oom]]")))
        leader = single.open_ask(prompt := new_prompt("[[ttft=1.5]]"))
        until(lambda: double.running == 1)
        row("the first caller leaves", *storm(double, [single], prompt, during=leader.close))
        pair = serve(double, workers=2, cache_url=f"sqlite:///{home}/shared.db")
        row("two workers, SQLite", *storm(double, [pair], new_prompt("[[ttft=1]]")))
        hosts = [serve(double, cache_url=redis.url), serve(double, cache_url=redis.url)]
        row("two servers, Redis", *storm(double, hosts, new_prompt("[[ttft=1]]")))
        hosts[0].open_ask(prompt := new_prompt("[[ttft=2]]"))
        until(lambda: double.running == 1)
        row("two servers, Redis; the one that generates is killed",
            *storm(double, hosts[1:], prompt, during=hosts[0].kill))


def kills(home):
    """Kill the server while it writes; every answer that a caller has got must be in the file afterwards."""
    acknowledged, lost, unclean = [], 0, 0
    path = home / "answers.db"
    with OllamaDouble(slots=WRITERS) as double, servers(home) as serve:
        server = serve(double, parallel=WRITERS, cache_url=f"sqlite:///{path}", cache_max_entries=1_000_000)
        for _ in range(KILLS):
            stop, fresh = threading.Event(), []

            def write(server=server, stop=stop, fresh=fresh):
                while not stop.is_set():
                    try:
                        reply = server.ask(prompt := new_prompt(), timeout=10)
                        if reply.headers["Cache-Status"].endswith("stored"):
                            fresh.append(prompt)
                    except (OSError, EOFError, AssertionError, ValueError):
                        return

            with concurrent.futures.ThreadPoolExecutor(WRITERS) as pool:
                for _ in range(WRITERS):
                    pool.submit(write)
                until(lambda fresh=fresh: len(fresh) >= 40)
                server.kill()
                stop.set()
            with closing(sqlite3.connect(path)) as database:
                unclean += database.execute("PRAGMA integrity_check").fetchone() != ("ok",)
            server.start()
            replies = [server.ask(prompt, headers={"Cache-Control": "only-if-cached"}) for prompt in fresh]
            lost += sum(reply.status != 200 or not reply.json["cached"] for reply in replies)
            acknowledged += fresh
    row("kill -9 while it writes to SQLite", "acknowledged", "of these lost", "unclean files")
    row("---", "---", "---", "---")
    row(KILLS, len(acknowledged), lost, unclean)


def outages(home):
    """Steady load while Redis is killed, paused and started again."""
    row("Redis", "requests", "failed", "hit p50 ms", "hit p99 ms", "hit longest ms", "miss p50 ms", "miss longest ms")
    row(*["---"] * 8)
    with OllamaDouble(slots=16) as double, RedisServer(home) as redis, servers(home) as serve:
        server = serve(double, parallel=16, cache_url=redis.url)
        known = [new_prompt() for _ in range(20)]
        for prompt in known:
            server.ask(prompt)
        for name, action in (("up", None), ("killed", redis.kill), ("started again", redis.start),
                             ("paused", redis.pause), ("goes on", redis.resume)):
            row(name, *load(server, known, action))


def load(server, known, action, seconds=6.0, callers=4):
    """Half hits, half misses; ``action`` after a second of it."""
    if action is not None:
        threading.Timer(1.0, action).start()
    end, hits, misses, failed = time.monotonic() + seconds, [], [], []

    def call(number):
        turn = 0
        while time.monotonic() < end:
            turn += 1
            hit = turn % 2 == 0
            began = time.monotonic()
            reply = server.ask(known[turn % len(known)] if hit else new_prompt(), timeout=10)
            (hits if hit else misses).append((time.monotonic() - began) * 1000)
            if reply.status != 200:
                failed.append(reply.status)
            time.sleep(0.005)

    together(callers, call)
    hits.sort()
    return (len(hits) + len(misses), len(failed), round(statistics.median(hits), 1),
            round(hits[int(len(hits) * 0.99)], 1), round(hits[-1], 1), round(statistics.median(misses), 1),
            round(max(misses), 1))


def main():
    """Run the parts that are named, or all."""
    for part in (storms, kills, outages):
        if part.__name__ in sys.argv[1:] or not sys.argv[1:]:
            with tempfile.TemporaryDirectory() as home:
                part(pathlib.Path(home))
            print()


if __name__ == "__main__":
    main()
