"""Turns: whether the oldest waiter goes first where several processes share the slots, and whether one starves."""

import itertools
import random
import threading
import time

from tests.support.redis_server import RedisServer

from .contenders import Stage
from .load import Client, percentile
from .report import Section

SHARES = (4, 2, 1, 1)  # of the calls that come to each process
SLOTS, TOKENS, GAP = 4, 20, 0.01
CALLS, LOAD, RISE = 400, 1.0, 20  # calls; of what the slots can do; callers that are there at the beginning


def run():
    """Share the slots by locks on files, then by leases in Redis."""
    section, rows = Section("turns"), []
    for way, redis in (("locks on files", False), ("leases in Redis", True)):
        waits, overtaken = _measure(redis)
        rows += [[way, number, len(found), *(percentile(found, percent) for percent in (50, 95, 100))]
                 for number, found in enumerate(waits, 1)]
        p95 = [percentile(found, 95) for found in waits]
        section.compare(f"p95 of the wait of the process that waits longest; shortest; {way}", max(p95), min(p95), " s")
        section.compare(f"calls that one was overtaken by, p99; {way}", percentile(overtaken, 99), None)
        section.compare(f"the same, most; {way}", max(overtaken), None)
    section.table(f"Waits for one of {SLOTS} slots at load {LOAD:g}, seconds: four processes, to which "
                  f"{', '.join(map(str, SHARES))} of {sum(SHARES)} calls come",
                  ["slots shared by", "process", "calls", "p50", "p95", "most"], rows)
    return section


def _measure(redis):
    """The waits of each process, and by how many calls that came after it each call was overtaken."""
    with Stage() as stage:
        stage.upstream(slots=SLOTS, gap=GAP, tokens=TOKENS)
        more = {"parallel": SLOTS, "queue": CALLS, "queue_timeout": 600}
        if redis:
            more["cache_url"] = stage.enter(RedisServer(stage.home)).url
        services = [stage.service(**more) for _ in SHARES]
        sent = _sent(services)
        granted = {one.json["prompt"]: one.granted for one in stage.double.calls("/api/generate")}
    waits = [[max(0.0, granted[prompt] - at) for prompt, (at, place) in sent.items() if place == number]
             for number in range(len(SHARES))]
    order = sorted((at, granted[prompt]) for prompt, (at, _) in sent.items())
    overtaken = [sum(later < mine for _, later in order[number + 1:]) for number, (_, mine) in enumerate(order)]
    return waits, overtaken


def _sent(services):
    """When and to which process each prompt was sent."""
    chance, rate, sent, failed = random.Random(8), LOAD * SLOTS / (TOKENS * GAP), {}, []
    gaps = itertools.chain([0.0] * RISE, iter(lambda: chance.expovariate(rate), None))
    moments = itertools.accumulate(itertools.islice(gaps, CALLS))
    begin = time.monotonic() + 0.5

    def call(number, at, place):
        server, prompt = services[place], f"Whose turn is it? {number}"
        time.sleep(max(0.0, begin + at - time.monotonic()))
        with Client(server.port) as client:
            sent[prompt] = time.monotonic(), place
            if (status := client.ask(server.path, server.body(prompt))[1]) != 200:
                failed.append(status)

    places = chance.choices(range(len(SHARES)), SHARES, k=CALLS)
    threads = [threading.Thread(target=call, args=(number, at, place))
               for number, (at, place) in enumerate(zip(moments, places, strict=True))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise RuntimeError(f"{len(failed)} calls failed, the first with {failed[0]}")
    return sent
