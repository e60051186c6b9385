"""Several Ollamas: waits against an ideal queue and nginx's least_conn, prefixes, a death, the cost of a choice."""

import heapq
import itertools
import json
import random
import subprocess
import sys
import threading
import time
from collections import Counter

from .contenders import MODEL, ROOT, Stage
from .load import Client, fleet, percentile
from .report import Section

HOSTS = ((4, 0.010), (2, 0.015), (1, 0.025))  # slots, and seconds a token of each Ollama
MEAN_TOKENS, MOST_TOKENS, LOAD, CALLS = 25, 100, 0.8, 260
PROMPTS, ROUNDS, CALLERS = 8, 20, 3
NGINX = """
worker_processes 1; error_log {home}/error.log; pid {home}/pid; {user}
events {{ worker_connections 2048; }}
http {{
  access_log off; client_body_temp_path {home}/body; proxy_temp_path {home}/temp; keepalive_requests 100000000;
  upstream model {{ least_conn; {servers} keepalive 256; }}
  server {{ listen 127.0.0.1:{port};
    location / {{ proxy_pass http://model; proxy_http_version 1.1; proxy_set_header Connection "";
                  proxy_read_timeout 60s; }} }}
}}
"""


def run():
    """Measure them one after the other."""
    section = Section("fleet")
    _waits(section)
    _prefixes(section)
    _death(section)
    _choice(section)
    return section


# Waits


def _waits(section):
    arrivals, found = _arrivals(), {"an ideal single queue (simulated)": []}
    controls = [{"slots": slots, "gap": gap} for slots, gap in HOSTS]
    with Stage() as stage:
        doubles = _doubles(stage, controls)
        urls = ",".join(f"{double.url}*{slots}" for double, (slots, _) in zip(doubles, HOSTS, strict=True))
        contenders = [stage.service(ollama_url=urls, queue=1000, queue_timeout=600)]
        contenders += filter(None, [_nginx(stage, "nginx, least_conn", doubles, [1, 1, 1]), _nginx(
            stage, "nginx, least_conn, weights = slots", doubles, [slots for slots, _ in HOSTS])])
        for server in contenders:
            _renew(doubles)
            found[server.name] = _sent(server, doubles, arrivals)
            found["an ideal single queue (simulated)"] = found["an ideal single queue (simulated)"] or _ideal(
                arrivals, [_pace(double) for double in doubles])
    rows = [[name, len(waits), *(percentile(waits, percent) for percent in (50, 90, 95, 99))]
            for name, waits in found.items()]
    section.table(f"Waits for a slot at load {LOAD:g}, seconds: three Ollamas of "
                  + ", ".join(f"{slots} × {1 / gap:.0f} tokens/s" for slots, gap in HOSTS),
                  ["contender", "calls", "p50", "p90", "p95", "p99"], rows)
    ideal, ours, *others = (percentile(waits, 95) for waits in found.values())
    section.at_most_of("p95 of the wait; an ideal single queue", ours, ideal, 1.1, " s")
    if others:
        section.at_most_of("p95 of the wait; nginx least_conn", ours, others[0], 0.75, " s")
    section.data["waits"] = {name: sorted(waits) for name, waits in found.items()}


def _arrivals():
    """Pairs of the time and the tokens of each call: a Poisson stream of answers of exponential length."""
    chance, now, found = random.Random(8), 0.0, []
    capacity = sum(slots / gap for slots, gap in HOSTS) / MEAN_TOKENS
    for _ in range(CALLS):
        now += chance.expovariate(LOAD * capacity)
        found.append((now, min(MOST_TOKENS, 1 + int(chance.expovariate(1 / (MEAN_TOKENS - 1))))))
    return found


def _pace(double):
    """The seconds a token that a double really took: a timer is late by a little."""
    calls = double.calls("/api/generate")
    return sum(one.ended - one.granted for one in calls) / sum(one.sent for one in calls)


def _ideal(arrivals, paces):
    """The waits where each call goes at once to the fastest free slot, else to the first that is freed."""
    free = sorted(itertools.chain.from_iterable([pace] * slots for (slots, _), pace in zip(HOSTS, paces, strict=True)))
    busy, waits = [], []
    for at, tokens in arrivals:
        while busy and busy[0][0] <= at:
            heapq.heappush(free, heapq.heappop(busy)[1])
        start, gap = (at, heapq.heappop(free)) if free else heapq.heappop(busy)
        heapq.heappush(busy, (start + tokens * gap, gap))
        waits.append(start - at)
    return waits


def _sent(server, doubles, arrivals):
    """The waits of calls that are sent when they arrive, whatever became of those before, by the doubles' clocks."""
    sent, failed = {}, []
    begin = time.monotonic() + 0.5

    def call(number, at, tokens):
        prompt = f"Question {number} of {server.name}? [[tokens={tokens}]]"
        time.sleep(max(0.0, begin + at - time.monotonic()))
        with Client(server.port) as client:
            sent[prompt] = time.monotonic()
            if (status := client.ask(server.path, server.body(prompt))[1]) != 200:
                failed.append(status)

    threads = [threading.Thread(target=call, args=(number, *arrival)) for number, arrival in enumerate(arrivals)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise RuntimeError(f"{server.name} failed: {Counter(failed)}")
    return [max(0.0, one.granted - sent[one.json["prompt"]]) for double in doubles
            for one in double.calls("/api/generate") if one.json["prompt"] in sent]


def _doubles(stage, controls):
    """A double for each of ``controls``, its model loaded."""
    doubles = []
    for one in controls:
        stage.upstream(**one)
        doubles.append(stage.double)
    _renew(doubles)
    return doubles


def _renew(doubles):
    """Have the doubles forget what was asked, and have their model in memory; the probes see that a second later."""
    for double in doubles:
        double.reset()
        double.set_model(MODEL, loaded=True)
    time.sleep(1.5)


def _nginx(stage, name, doubles, weights):
    servers = " ".join(f"server 127.0.0.1:{double.port} weight={weight} max_fails=0;"
                       for double, weight in zip(doubles, weights, strict=True))
    return stage.balancer(name, NGINX, servers=servers)


# Prefixes


def _prefixes(section):
    rows, shares = [], {}
    with Stage() as stage:
        doubles = _doubles(stage, [{"slots": 2, "ttft": 0.05, "prefix_memory": PROMPTS}] * 3)
        urls = ",".join(f"{double.url}*2" for double in doubles)
        for server in filter(None, [stage.service(ollama_url=urls), _nginx(stage, "nginx, least_conn", doubles,
                                                                                  [1, 1, 1])]):
            _renew(doubles)
            _talk(server)
            share, busiest = _where(doubles)
            cached = sum(double.cached_tokens for double in doubles) / sum(double.prompt_tokens for double in doubles)
            rows.append([server.name, PROMPTS * ROUNDS, share, busiest, cached])
            shares[server.name] = share, busiest
    section.table(f"{PROMPTS} long prompts over 3 Ollamas, {CALLERS} callers: the share that went where its beginning "
                  "was read last, of those that could", ["contender", "calls", "share", "busiest / mean",
                                                         "tokens read before"], rows)
    (ours, busiest), *others = shares.values()
    section.at_least("share of prompts that went where their beginning was", ours, 0.9)
    section.at_most("busiest Ollama by the mean", busiest, 1.25, " ×")
    if others:
        section.at_least_of("that share; nginx least_conn", ours, others[0][0], 2.0)


def _talk(server):
    turns = [(prompt, number) for prompt in range(PROMPTS) for number in range(ROUNDS)]
    random.Random(8).shuffle(turns)
    turns = iter(turns)  # a list's iterator, which threads may share

    def caller(mine):
        chance = random.Random(mine)
        with Client(server.port) as client:
            for prompt, number in turns:
                client.ask(server.path, server.body(f"Story {prompt} begins so. " * 100 + f"Then {number}?"))
                time.sleep(chance.uniform(0, 0.05))

    fleet(CALLERS, caller)


def _where(doubles):
    """The share of calls that came where one of their beginning had come last, and the busiest double by the mean."""
    calls = sorted((one.started, number, one.json["prompt"][:50]) for number, double in enumerate(doubles)
                   for one in double.calls("/api/generate"))
    last, right, possible, count = {}, 0, 0, Counter()
    for _, number, beginning in calls:
        if beginning in last:
            possible += 1
            right += last[beginning] == number
        last[beginning] = number
        count[number] += 1
    return right / possible, max(count.values()) / (len(calls) / len(doubles))


# A death


def _death(section):
    outcomes, added = Counter(), []
    with Stage() as stage:
        doubles = _doubles(stage, [{"slots": 4, "ttft": 0.2, "gap": 0.01, "tokens": 20}] * 3)
        dying = stage.processes[0]
        service = stage.service(ollama_url=",".join(f"{double.url}*4" for double in doubles))

        def call(number):
            time.sleep(number * 0.08)
            sent = time.monotonic()
            with Client(service.port) as client:
                try:
                    pieces = client.stream(service.path, service.body(f"Question {number}?", stream=True))
                    outcomes["answered" if len(pieces) > 20 else "broken off" if len(pieces) > 1 else "FAILED"] += 1
                    added.append(pieces[0] - 0.2)
                except RuntimeError:
                    outcomes["FAILED"] += 1
            return sent

        threads = [threading.Thread(target=call, args=(number,)) for number in range(75)]
        for thread in threads:
            thread.start()
        time.sleep(2.0)
        dying.kill()
        for thread in threads:
            thread.join()
    section.table("One Ollama of three is killed under load: what became of the calls",
                  ["calls", "answered", "broken off after a piece", "failed without a piece", "most added to a first"
                   " piece, s"], [[75, outcomes["answered"], outcomes["broken off"], outcomes["FAILED"], max(added)]])
    section.at_most("calls without a piece that failed by a death", outcomes["FAILED"], 0)
    section.at_most("most that a death added to a first piece", max(added), 1.0, " s")


# The choice


def _choice(section):
    """Under gevent, as the service runs, and so in a process of its own."""
    found = json.loads(subprocess.run([sys.executable, "-m", "benchmarks.choice"], capture_output=True, text=True,
                                      cwd=ROOT, check=True).stdout)
    section.table("The choice of an Ollama, µs", ["case", "p50", "p90"], [
        [case, percentile(times, 50), percentile(times, 90)] for case, times in found.items()])
    busy = list(found)[-1]
    section.at_most(f"choice, {busy}, p50", percentile(found[busy], 50), 50.0, " µs")
