"""Embeddings of a hundred texts of which none, half or all are cached, compared with Ollama's own time for all."""

import statistics

from .contenders import DIRECT, Stage
from .load import Client
from .report import Section

MODEL, TEXTS, ROUNDS = "nomic-embed-text", 100, 15
SHARES = (0, 50, 100)
DOORS = {"/v1/embeddings": {"encoding_format": "base64"}, "/api/embed": {}}


def run():
    """Ask all in turn, each round with texts of its own."""
    section = Section("embeddings")
    times = {}
    with Stage() as stage:
        upstream = stage.upstream(record=0)
        stage.double.add_model(MODEL, capabilities=["embedding"])
        service = stage.service(models=MODEL)
        with Client(upstream.port) as direct, Client(service.port) as ours:
            for number in range(-1, ROUNDS):
                found = {(DIRECT, 0): _ask(direct, "/api/embed", _texts(number, "direct"))}
                for path, fields in DOORS.items():
                    for share in SHARES:
                        texts = _texts(number, f"{path} {share}")
                        if share:
                            _ask(ours, path, texts[:share], fields)
                        found[path, share] = _ask(ours, path, texts, fields)
                for what, seconds in found.items():
                    if number >= 0:
                        times.setdefault(what, []).append(1000 * seconds)
    _report(section, {what: statistics.median(found) for what, found in times.items()})
    return section


def _texts(number, salt):
    return [f"Text {at} of round {number} for {salt}." for at in range(TEXTS)]


def _ask(client, path, texts, fields=None):
    """Seconds until the vectors are there."""
    seconds, status, data = client.ask(path, {"model": MODEL, "input": texts, **(fields or {})})
    if status != 200:
        raise RuntimeError(f"{path} answered {status}: {data[:200]!r}")
    return seconds


def _report(section, median):
    base = median[DIRECT, 0]
    section.table(f"Vectors of {TEXTS} texts of 768 numbers, medians of {ROUNDS} interleaved rounds",
                  ["door", "% cached", "ms", "× Ollama's own time for all"],
                  [[path, share, found, found / base] for (path, share), found in median.items()])
    for (path, share), found in median.items():
        if path != DIRECT:
            section.compare(f"{TEXTS} texts at {path}, {share} % cached; the upstream for all", found, base, " ms")
