"""Hits: throughput and latency by connections, compared with the baselines."""

import dataclasses
import json
import statistics

from .contenders import Stage
from .load import Client, percentile, wrk
from .report import Section

CONNECTIONS = (1, 4, 16, 64)
ROUNDS = 3
SECONDS = 1
PROMPT = "Why is the sky blue? [[tokens=90]]"
TURN = 900  # prompts in turn; the cache holds 1,000 by default
SERVICE, TURNS = "llama_api", f"llama_api, {TURN} prompts in turn"
FLASK, GTHREAD, RAW = "bare Flask, same worker", "bare Flask, gthread 64", "raw WSGI, same worker"


def run():
    """Measure all contenders in interleaved rounds."""
    section = Section("hits")
    with Stage() as stage:
        upstream = stage.upstream(record=0)
        service = stage.service()
        with Client(service.port) as client:
            client.ask("/generate", service.body(PROMPT))
            answer = client.ask("/generate", service.body(PROMPT))[2]
            for number in range(1, TURN + 1):
                client.ask("/generate", service.body(PROMPT.replace("sky", f"sky{number}")))
        contenders = [service, dataclasses.replace(service, name=TURNS), stage.bare("flask_app", answer, FLASK),
                      stage.bare("raw_app", answer, RAW),
                      stage.bare("flask_app", answer, GTHREAD, worker="gthread"), upstream, stage.nginx()]
        rounds = {one.name: {} for one in contenders if one}
        for number in range(ROUNDS):
            for connections in CONNECTIONS:
                for one in filter(None, contenders):
                    rounds[one.name].setdefault(connections, []).append(_load(one, connections, number))
    _report(section, {name: {count: _medians(found) for count, found in by_count.items()}
                      for name, by_count in rounds.items()}, len(answer))
    return section


def _load(server, connections, number):
    """One round: by a plain socket at 1 connection (throughput by wrk at more)."""
    if server.name == TURNS:
        path = server.home / "turn.json"
        path.write_text(json.dumps(server.body(PROMPT.replace("sky", "sky@@"))))
        return wrk(server.url, path, connections, SECONDS, "turn", TURN)
    if connections > 1:
        return wrk(server.url, server.body_file(PROMPT), connections, SECONDS)
    with Client(server.port) as client:
        answers = [client.ask(server.path, server.body(PROMPT)) for _ in range(800)]
    times = [seconds * 1000 for seconds, _, _ in answers]
    return {"rate": 1000 / statistics.mean(times), "failed": sum(status != 200 for _, status, _ in answers),
            **{f"p{at}": percentile(times, at) for at in (50, 90, 99)}}


def _medians(found):
    return {key: statistics.median(one[key] for one in found) for key in ("rate", "p50", "p90", "p99")} | {
        "failed": sum(one["failed"] for one in found)}


def _report(section, figures, size):
    section.data = {"figures": figures, "bytes": size}
    base = figures[FLASK]
    rows = [[name, count, one["rate"], one["rate"] / base[count]["rate"], one["p50"], one["p90"], one["p99"],
             one["failed"]] for name, by_count in figures.items() for count, one in by_count.items()]
    section.table(f"Hits of {size} bytes, 1 process, medians of {ROUNDS} interleaved rounds",
                  ["contender", "connections", "requests/s", "× bare Flask", "p50 ms", "p90 ms", "p99 ms", "failed"],
                  rows)
    ours = figures[SERVICE]
    for count in (16, 64):
        flask = base[count]["rate"]
        section.at_least_of(f"hits/s at {count} connections, {TURN} prompts in turn; bare Flask",
                            figures[TURNS][count]["rate"], flask, 1.0)
        section.at_least_of(f"hits/s at {count} connections; bare Flask under the same worker", ours[count]["rate"],
                            flask, 1.0)
    section.at_least_of("hits/s at 16 connections; bare Flask on gthread 64 (3,300 : 2,500)", ours[16]["rate"],
                        figures[GTHREAD][16]["rate"], 1.32)
    section.at_most_of("p99 of a hit at 16 connections; bare Flask", ours[16]["p99"], base[16]["p99"], 1.3, " ms")
    section.at_most("p50 of a hit at 1 connection; bare Flask", ours[1]["p50"], 0.45, " ms", base[1]["p50"])
