"""Start: from `gunicorn wsgi:app` to the first 200, and the memory of the idle service."""

import statistics
import time

from .contenders import Stage, wait_until_up
from .load import Client
from .report import Section

ROUNDS = 5


def run():
    """Start and end the service a few times."""
    section = Section("start")
    seconds, memory = [], []
    for _ in range(ROUNDS):
        with Stage() as stage:
            stage.upstream(record=0)
            started = time.perf_counter()
            service = stage.service(wait=False)
            seconds.append(wait_until_up(service.port, service.process) - started)
            with Client(service.port) as client:
                client.ask("/generate", service.body("Are you there?"))
            memory.append((service.rss(), service.pss()))
    rss, pss = (statistics.median(one[at] / 1e6 for one in memory) for at in (0, 1))
    section.table(f"Start and idle memory, medians of {ROUNDS}", ["what", "value"], [
        ["`gunicorn wsgi:app` to the first 200 of /livez, s", statistics.median(seconds)],
        ["RSS of the larger process (the worker, by and by) after one request, MB", rss],
        ["PSS of master and worker together, MB", pss]])
    section.at_most("from `gunicorn wsgi:app` to the first 200", statistics.median(seconds), 1.0, " s")
    section.at_most("memory, idle", rss, 80.0, " MB")
    return section
