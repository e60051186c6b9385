"""Misses: what the service adds to a call of the upstream, by percentile."""

from .contenders import Stage
from .load import Client, fleet, percentile
from .report import Section

CASES = {1: (0.0, 8, 100, 0.8, 3.0), 16: (0.2, 3, 15, 2.0, 10.0)}  # upstream s, rounds, calls a round, targets p50, p99


def run():
    """Call each contender in turn with prompts that nobody has asked before."""
    section = Section("misses")
    rows = []
    for connections, (seconds, rounds, calls, *targets) in CASES.items():
        times = _measure(connections, seconds, rounds, calls)
        direct = times["upstream, direct"]
        for name, found in times.items():
            added = [percentile(found, at) - percentile(direct, at) for at in (50, 90, 99)]
            rows.append([name, connections, f"{seconds * 1000:g} ms", len(found), percentile(found, 50),
                         percentile(found, 99), *added])
            if name == "llama_api":
                for at, value, limit in zip((50, 99), (added[0], added[2]), targets, strict=True):
                    section.at_most(f"miss, added p{at}, {connections} connection{'s'[:connections - 1]}, "
                                    f"upstream {seconds * 1000:g} ms", value, limit, " ms")
        section.data[str(connections)] = {name: [percentile(found, at) - percentile(direct, at)
                                                 for at in (50, 75, 90, 95, 99)] for name, found in times.items()}
    section.table("Misses: milliseconds, and what was added to the upstream's own",
                  ["contender", "connections", "upstream", "calls", "p50", "p99", "added p50", "added p90",
                   "added p99"], rows)
    return section


def _measure(connections, seconds, rounds, calls):
    with Stage() as stage:
        upstream = stage.upstream(record=0, ttft=seconds)
        contenders = [one for one in (upstream, stage.service(parallel=64), stage.nginx()) if one]
        times = {one.name: [] for one in contenders}
        for number in range(-1, rounds):
            for one in contenders:
                found = _round(one, connections, calls, number)
                if number >= 0:  # the first one warms up
                    times[one.name] += found
    return times


def _round(server, connections, calls, number):
    def work(mine):
        with Client(server.port) as client:
            answers = [client.ask(server.path, server.body(f"Question {server.name} {number} {mine} {call}?"))
                       for call in range(calls)]
        if any(status != 200 for _, status, _ in answers):
            raise RuntimeError(f"{server.name}: {answers}")
        return [seconds * 1000 for seconds, _, _ in answers]

    return [one for found in fleet(connections, work)[1] for one in found]
