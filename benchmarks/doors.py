"""Doors: a chat in OpenAI's and in Ollama's form compared with POST /generate, hits and misses."""

import json
import statistics

from .contenders import MODEL, Stage
from .load import Client, wrk
from .report import Section

PIECES, CALLERS, ROUNDS, SECONDS = 100, 16, 5, 1
BASE = "/generate"


def _chat(prompt):
    return {"model": MODEL, "messages": [{"role": "user", "content": prompt}]}


DOORS = {BASE: lambda prompt: {"prompt": prompt}, "/v1/chat/completions": _chat,
         "/api/chat": lambda prompt: {**_chat(prompt), "stream": False}}


def run():
    """Ask at all doors in turn, in interleaved rounds."""
    section = Section("doors")
    rates, prices = {}, {}
    with Stage() as stage:
        stage.upstream(record=0, tokens=PIECES)
        service = stage.service(parallel=64)
        with Client(service.port) as client:
            for path, body in DOORS.items():
                client.ask(path, body("Why is the sky blue?"))
        for number in range(-1, ROUNDS):
            for kind in ("hit", "miss"):
                for path in DOORS:
                    rate, price = _load(service, path, kind, number)
                    if number >= 0:
                        rates.setdefault((kind, path), []).append(rate)
                        prices.setdefault((kind, path), []).append(price)
    _report(section, *({what: statistics.median(found) for what, found in by_door.items()}
                       for by_door in (rates, prices)))
    return section


def _load(service, path, kind, number):
    """Requests/s of one round, and the processor time of each in microseconds."""
    file = service.home / "door.json"
    file.write_text(json.dumps(DOORS[path]("Question @@?" if kind == "miss" else "Why is the sky blue?")))
    before = service.cpu_seconds()
    found = wrk(f"http://127.0.0.1:{service.port}{path}", file, CALLERS, SECONDS,
                "unique" if kind == "miss" else "same", f"{path}-{number}")
    if found["failed"]:
        raise RuntimeError(f"{path}: {found['failed']} {kind}s failed")
    return found["rate"], 1e6 * (service.cpu_seconds() - before) / found["requests"]


def _report(section, rate, price):
    section.table(f"Doors, {CALLERS} callers, medians of {ROUNDS} interleaved rounds; misses of {PIECES} pieces",
                  ["", "door", "requests/s", f"× {BASE}", "µs of the processor", f"× {BASE}"],
                  [[kind, path, found, found / rate[kind, BASE], price[kind, path],
                    price[kind, path] / price[kind, BASE]] for (kind, path), found in rate.items()])
    for (kind, path), found in rate.items():
        if path != BASE:
            section.at_least_of(f"{'hits' if kind == 'hit' else 'misses'}/s of {path}; {BASE}", found,
                                rate[kind, BASE], 0.85)
