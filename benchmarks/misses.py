"""Misses of 100 pieces: the service's overhead over a call of the upstream, its maximum rate, and its cost."""

import json
import statistics
import time

from .contenders import DIRECT, NAIVE, Stage
from .load import Client, fleet, percentile, wrk
from .report import Section

PIECES = 100
CASES = {1: (0.0, 8, 0.5, 1.2, 3.0), 16: (0.2, 3, 2.0, 6.0, 25.0)}  # upstream s, rounds, s a round, goals p50, p99
CALLERS, ROUNDS, SECONDS = 16, 5, 1  # at saturation
OURS = "llama_api"


def run():
    """Call each contender in turn with new prompts."""
    section = Section("misses")
    _latency(section)
    _saturation(section)
    return section


def _contenders(stage, **controls):
    upstream = stage.upstream(record=0, tokens=PIECES, **controls)
    return [one for one in (upstream, stage.service(OURS, parallel=64), stage.naive(), stage.nginx()) if one]


# Latency


def _latency(section):
    rows = []
    for connections, (seconds, rounds, length, *goals) in CASES.items():
        times = _measure(connections, seconds, rounds, length)
        added = {name: [percentile(found, at) - percentile(times[DIRECT], at) for at in (50, 75, 90, 95, 99)]
                 for name, found in times.items()}
        for name, found in times.items():
            rows.append([name, connections, f"{seconds * 1000:g} ms", len(found), percentile(found, 50),
                         percentile(found, 99), added[name][0], added[name][2], added[name][4]])
        for place, percent, goal in ((0, 50, goals[0]), (4, 99, goals[1])):
            section.at_most(f"miss, added p{percent}, {connections} caller{'s'[:connections - 1]}, upstream "
                            f"{seconds * 1000:g} ms; naive", added[OURS][place], goal, " ms", added[NAIVE][place])
        section.data[str(connections)] = added
    section.table(f"Misses of {PIECES} pieces: milliseconds, and what was added to the upstream's own",
                  ["contender", "callers", "upstream", "calls", "p50", "p99", "added p50", "added p90", "added p99"],
                  rows)


def _measure(connections, seconds, rounds, length):
    with Stage() as stage:
        contenders = _contenders(stage, ttft=seconds)
        times = {one.name: [] for one in contenders}
        for number in range(-1, rounds):
            for one in contenders:
                found = _round(one, connections, length, number)
                if number >= 0:  # the first one warms up
                    times[one.name] += found
    return times


def _round(server, connections, length, number):
    """Milliseconds of each call of callers that ask one thing after the other for ``length`` seconds."""
    until = time.monotonic() + length

    def work(mine):
        found = []
        with Client(server.port) as client:
            while time.monotonic() < until:
                prompt = f"Question {server.name} {number} {mine} {len(found)}?"
                seconds, status, data = client.ask(server.path, _body(server, prompt))
                if status != 200:
                    raise RuntimeError(f"{server.name} answered {status}: {data[:200]!r}")
                found.append(seconds * 1000)
        return found

    return [one for found in fleet(connections, work)[1] for one in found]


def _body(server, prompt):
    """A request for a plain answer; of Ollama the stream that the service asks for."""
    return server.body(prompt, stream=server.ollama)


# Saturation


def _saturation(section):
    rates, prices = {}, {}
    with Stage() as stage:
        contenders = _contenders(stage)
        for number in range(-1, ROUNDS):
            for one in contenders:
                rate, price = _load(one, number)
                if number >= 0:
                    rates.setdefault(one.name, []).append(rate)
                    prices.setdefault(one.name, []).append(price)
    rate, price = ({name: statistics.median(found) for name, found in by_name.items()} for by_name in (rates, prices))
    section.table(f"Misses of {PIECES} pieces at saturation, {CALLERS} callers: medians of {ROUNDS} interleaved rounds",
                  ["contender", "misses/s", "least", "most", "× naive", "ms of the processor a miss"],
                  [[name, rate[name], min(rates[name]), max(rates[name]), rate[name] / rate[NAIVE], price[name]]
                   for name in rate])
    section.at_least("misses/s at saturation", rate[OURS], 800.0)
    section.at_least_of("misses/s at saturation; naive", rate[OURS], rate[NAIVE], 0.8)
    section.compare("processor time of a miss; naive", price[OURS], price[NAIVE], " ms")


def _load(server, number):
    """Misses/s of one round, and the milliseconds of the processor that the server spent on each."""
    path = server.home / "unique.json"
    path.write_text(json.dumps(_body(server, "Question @@?")))
    before = server.cpu_seconds()
    found = wrk(server.url, path, CALLERS, SECONDS, "unique", f"{server.name.replace(' ', '-')}-{number}")
    if found["failed"]:
        raise RuntimeError(f"{server.name}: {found['failed']} calls failed")
    return found["rate"], 1000 * (server.cpu_seconds() - before) / found["requests"]
