"""Storms: many identical requests at once, and many slow ones during a health check."""

import statistics
import threading
import time

from .contenders import Stage
from .load import Client, fleet, percentile
from .report import Section

SAME, DISTINCT = 100, 200
SAME_SECONDS, DISTINCT_SECONDS, ROUNDS = 1.0, 3.0, 3


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
            found = [_pinged(server, number) for number in range(ROUNDS)]
            waits, ends = ([time for one in found for time in one[at]] for at in (0, 1))
            rows.append([server.name, statistics.median(one[2] for one in found), len(waits), percentile(waits, 99),
                         len(ends), percentile(ends, 50), percentile(ends, 99), max(ends)])
    section.table(f"{DISTINCT} distinct misses of {DISTINCT_SECONDS:g} s at once, and a health check meanwhile: while"
                  f" they wait, and while they end; {ROUNDS} rounds",
                  ["contender", "wall s", "checks", "p99 ms", "checks at the end", "p50 ms", "p99 ms", "worst ms"],
                  rows)
    direct, ours = rows
    section.at_most(f"{DISTINCT} distinct misses of 3 s: wall; the upstream", ours[1], 3.3, " s", direct[1])
    section.at_most(f"/livez p99 while {DISTINCT} answers end together; the upstream", ours[6], 50.0, " ms", direct[6])


def _pinged(server, number):
    """Ask for something new ``DISTINCT`` times at once, and for the health again and again, each on a new connection.

    Returns the milliseconds of the checks that ended before the first answer, those of the later ones, and the seconds
    until all were answered.
    """
    path = "/" if server.ollama else "/livez"
    pings, answered, done = [], [], threading.Event()

    def ping():
        while not done.is_set():
            started = time.perf_counter()
            with Client(server.port) as client:
                client.ask(path, method="GET")
            pings.append((started, time.perf_counter()))
            time.sleep(0.005)

    def miss(caller):
        with Client(server.port) as client:
            _, status, data = client.ask(server.path, server.body(f"Distinct question {number} {caller}?"))
            answered.append(time.perf_counter())
        if status != 200:
            raise RuntimeError(f"{server.name} answered {status}: {data[:200]!r}")

    pinger = threading.Thread(target=ping)
    pinger.start()
    try:
        seconds, _ = fleet(DISTINCT, miss)
    finally:
        done.set()
        pinger.join()
    first, waits, ends = min(answered), [], []
    for started, ended in pings:
        (waits if ended < first else ends).append(1000 * (ended - started))
    return waits, ends, seconds
