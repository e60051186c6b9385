"""Streams: what the service adds to the time to the first byte and to the gaps between the pieces."""

from itertools import pairwise

from .contenders import DIRECT, Stage
from .load import Client, fleet, percentile
from .report import Section

FIRST, GAP, TOKENS = 0.05, 0.02, 30  # seconds, seconds, pieces
CASES = {1: (8, 2.0), 16: (4, 7.0)}  # rounds, target of the added first byte in ms


def run():
    """Stream from each contender in turn, each prompt asked once."""
    section = Section("streams")
    rows = []
    with Stage() as stage:
        upstream = stage.upstream(record=0, ttft=FIRST, gap=GAP, tokens=TOKENS)
        contenders = [one for one in (upstream, stage.service(parallel=64), stage.nginx("/stream/api/generate")) if one]
        for connections, (rounds, limit) in CASES.items():
            found = {one.name: ([], []) for one in contenders}
            for number in range(-1, rounds):
                for one in contenders:
                    firsts, gaps = _round(one, connections, number)
                    if number >= 0:
                        found[one.name][0].extend(firsts)
                        found[one.name][1].extend(gaps)
            rows += _report(section, found, connections, limit)
    section.table(f"Streams: {TOKENS} pieces, the first after {FIRST * 1000:g} ms, then every {GAP * 1000:g} ms",
                  ["contender", "connections", "streams", "first byte p50 ms", "p99", "added p50", "added p99",
                   "gap p50 ms", "gap p99", "gap p99 beyond direct"], rows)
    return section


def _round(server, connections, number):
    def work(mine):
        with Client(server.port) as client:
            return client.stream(server.path, server.body(f"Tell {server.name} {connections} {number} {mine}", True))

    arrivals = fleet(connections, work)[1]
    gaps = [1000 * (later - sooner) for moments in arrivals for sooner, later in pairwise(moments)]
    return [1000 * moments[0] for moments in arrivals], gaps


def _report(section, found, connections, limit):
    direct_firsts, direct_gaps = found[DIRECT]
    rows, firsts_added = [], {}
    for name, (firsts, gaps) in found.items():
        added = [percentile(firsts, at) - percentile(direct_firsts, at) for at in (50, 99)]
        beyond = percentile(gaps, 99) - percentile(direct_gaps, 99)
        rows.append([name, connections, len(firsts), percentile(firsts, 50), percentile(firsts, 99), *added,
                     percentile(gaps, 50), percentile(gaps, 99), beyond])
        firsts_added[name] = added[0]
        if name == "llama_api" and connections > 1:
            section.at_most(f"stream, gap p99 beyond direct, {connections} connections", beyond, 0.5, " ms")
    section.at_most(f"stream, first byte, added p50, {connections} connection{'s'[:connections - 1]}; nginx",
                    firsts_added["llama_api"], limit, " ms", firsts_added.get("nginx"))
    return rows
