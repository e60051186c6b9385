"""Tokens: what one costs while many stream at a model's pace, and how many go through one worker at most."""

import statistics

from .contenders import DIRECT, NAIVE, Stage
from .load import Client, fleet
from .report import Section

STREAMS, GAP, TOKENS = 64, 0.02, 100  # at a model's pace: 50 tokens/s each
FLOODS, ROUNDS, CALLS = 16, 5, 6  # without a pause
OURS, GOALS = "llama_api", {True: 55.0, False: 35.0}  # µs a token, streamed and plain


def run():
    """Stream at a model's pace, then as fast as it goes."""
    section = Section("tokens")
    _price(section)
    _flood(section)
    return section


def _price(section):
    prices, rows = {}, []
    with Stage() as stage:
        stage.upstream(record=0, gap=GAP, tokens=TOKENS)
        contenders = [(stage.service(OURS, parallel=STREAMS), (True, False)), (stage.naive(), (False,)),
                      (stage.nginx("/stream/api/generate"), (True,))]
        for number in range(-1, 2):
            for server, kinds in contenders:
                for streamed in kinds if server else ():
                    before = server.cpu_seconds()
                    _ask(server, STREAMS, 1, streamed, number)
                    if number >= 0:
                        prices.setdefault((server.name, streamed), []).append(
                            1e6 * (server.cpu_seconds() - before) / (STREAMS * TOKENS))
    price = {what: statistics.mean(found) for what, found in prices.items()}
    for (name, streamed), found in price.items():
        rows.append([name, "streamed" if streamed else "plain", found])
    section.table(f"Processor time of the workers for a token, its share of the request included: {STREAMS} callers,"
                  f" {1 / GAP:.0f} tokens/s each, {TOKENS} tokens an answer", ["contender", "answer", "µs a token"],
                  rows)
    section.at_most("processor time of a streamed token; nginx", price[OURS, True], GOALS[True], " µs",
                    price.get(("nginx", True)))
    section.at_most("processor time of a token of a plain answer; naive", price[OURS, False], GOALS[False], " µs",
                    price[NAIVE, False])


def _flood(section):
    rates = {}
    with Stage() as stage:
        upstream = stage.upstream(record=0, tokens=TOKENS)
        contenders = [(upstream, True), (service := stage.service(OURS, parallel=STREAMS), True), (service, False),
                      (stage.naive(), False)]
        for number in range(-1, ROUNDS):
            for server, streamed in contenders:
                seconds = _ask(server, FLOODS, CALLS, streamed, number)
                if number >= 0:
                    rates.setdefault((server.name, streamed), []).append(FLOODS * CALLS * TOKENS / seconds)
    rate = {what: statistics.median(found) for what, found in rates.items()}
    section.table(f"Tokens/s through one worker, {FLOODS} callers, {TOKENS} tokens an answer without a pause",
                  ["contender", "answer", "tokens/s"],
                  [[name, "streamed" if streamed else "plain", found] for (name, streamed), found in rate.items()])
    section.compare("tokens/s through one worker, plain; naive", rate[OURS, False], rate[NAIVE, False])
    section.compare("tokens/s through one worker, streamed; the upstream", rate[OURS, True], rate[DIRECT, True])


def _ask(server, callers, calls, streamed, number):
    """Seconds until all callers have had their answers, one after the other, each to something new."""
    def work(mine):
        with Client(server.port) as client:
            for call in range(calls):
                prompt = f"Tell {server.name} {streamed} {number} {mine} {call}"
                if (status := client.ask(server.path, server.body(prompt, streamed))[1]) != 200:
                    raise RuntimeError(f"{server.name} answered {status}")

    return fleet(callers, work)[0]
