"""Workers: hits/s of two against one."""

import statistics

from .contenders import Stage
from .hits import FLASK, PROMPT
from .load import Client, wrk
from .report import Section

ROUNDS, SECONDS, CONNECTIONS = 5, 1, 64


def run():
    """Interleave one and two workers, of the service and of bare Flask."""
    section = Section("workers")
    with Stage() as stage:
        stage.upstream(record=0)
        shared = f"sqlite:///{stage.home}/answers.db"
        service = stage.service("llama_api, 1 worker")
        with Client(service.port) as client:
            answer = client.ask("/generate", service.body(PROMPT))[2]
        pairs = {"llama_api": (service, stage.service("two", workers=2, cache_url=shared)),
                 FLASK: tuple(stage.bare("flask_app", answer, f"flask {count}", workers=count) for count in (1, 2))}
        rates = {name: ([], []) for name in pairs}
        for _ in range(ROUNDS):
            for name, pair in pairs.items():
                for server, found in zip(pair, rates[name], strict=True):
                    found.append(wrk(server.url, server.body_file(PROMPT), CONNECTIONS, SECONDS)["rate"])
    medians = {name: [statistics.median(found) for found in pair] for name, pair in rates.items()}
    section.table(f"Hits/s at {CONNECTIONS} connections by workers (two share sqlite), medians of {ROUNDS}",
                  ["contender", "1 worker", "2 workers", "ratio"],
                  [[name, one, two, two / one] for name, (one, two) in medians.items()])
    one, two = medians["llama_api"]
    section.at_least_of("hits/s of 2 workers; of 1", two, one, 1.7)
    return section
