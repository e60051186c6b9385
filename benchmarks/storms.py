"""Storms: many identical requests at once, and many slow ones beside a health check."""

import threading
import time

from .contenders import Stage
from .load import Client, fleet, percentile
from .report import Section

SAME, DISTINCT = 100, 200
SAME_SECONDS, DISTINCT_SECONDS = 1.0, 3.0


def run():
    """Run the storms."""
    section = Section("storms")
    rows = []
    with Stage() as stage:
        upstream = stage.upstream(ttft=SAME_SECONDS)
        one = stage.service("llama_api, 1 worker", parallel=4)
        two = stage.service("llama_api, 2 workers, sqlite", workers=2, parallel=4,
                            cache_url=f"sqlite:///{stage.home}/answers.db")
        for server in filter(None, (upstream, one, two, stage.nginx())):
            calls, seconds = _identical(stage.double, server)
            rows.append([server.name, calls, seconds])
            if server in (one, two):
                section.at_most(f"{SAME} identical requests, upstream 1 s: calls ({server.name})", calls, 1)
                section.at_most(f"{SAME} identical requests, upstream 1 s: wall ({server.name})", seconds, 1.1, " s")
    section.table(f"{SAME} identical requests at once, upstream {SAME_SECONDS:g} s",
                  ["contender", "calls to the upstream", "wall s"], rows)
    _distinct(section)
    return section


def _identical(double, server):
    body = server.body(f"The same question to {server.name}?")

    def work(_):
        with Client(server.port) as client:
            _, status, _ = client.ask(server.path, body)
        if status != 200:
            raise RuntimeError(f"{server.name} answered {status}")

    with Client(server.port) as client:
        client.ask("/livez", method="GET")
    seconds, _ = fleet(SAME, work)
    return double.generations[body["prompt"]], seconds


def _distinct(section):
    with Stage() as stage:
        upstream = stage.upstream(ttft=DISTINCT_SECONDS, record=0)
        service = stage.service(parallel=DISTINCT)
        rows = []
        for server in (upstream, service):
            pings, seconds = _pinged(server)
            rows.append([server.name, seconds, len(pings), percentile(pings, 50), percentile(pings, 99), max(pings)])
    section.table(f"{DISTINCT} distinct misses of {DISTINCT_SECONDS:g} s at once, and a health check meanwhile",
                  ["contender", "wall s", "checks", "p50 ms", "p99 ms", "worst ms"], rows)
    section.at_most(f"{DISTINCT} distinct misses of 3 s: wall", seconds, 3.3, " s")
    section.at_most("/livez p99 meanwhile", rows[-1][4], 50.0, " ms")


def _pinged(server):
    """Milliseconds of a health check every 5 ms on a new connection, and seconds until all misses were answered."""
    path = "/" if server.ollama else "/livez"
    pings, done = [], threading.Event()

    def ping():
        while not done.is_set():
            started = time.perf_counter()
            with Client(server.port) as client:
                client.ask(path, method="GET")
            pings.append(1000 * (time.perf_counter() - started))
            time.sleep(0.005)

    def miss(number):
        with Client(server.port) as client:
            _, status, data = client.ask(server.path, server.body(f"Distinct question {number}?"))
        if status != 200:
            raise RuntimeError(f"{server.name} answered {status}: {data[:200]!r}")

    pinger = threading.Thread(target=ping)
    pinger.start()
    try:
        seconds, _ = fleet(DISTINCT, miss)
    finally:
        done.set()
        pinger.join()
    return pings, seconds
