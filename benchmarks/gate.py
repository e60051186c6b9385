"""The gate: the processor time that many waiting callers take from the model."""

import time

from tests.support.gunicorn_server import until

from .contenders import Stage
from .load import waiting
from .report import Section

WAITING = (64, 300)
MODEL_SECONDS, SETTLE, WINDOW = 60.0, 2.0, 4.0


def run():
    """Compare the processor time of a service with no, some and many waiting callers."""
    section = Section("gate")
    shares = {}
    with Stage() as stage:
        stage.upstream(record=0, ttft=MODEL_SECONDS)
        for count in (0, *WAITING):
            service = stage.service(queue=max(WAITING), queue_timeout=600, timeout=600)
            with waiting(service, count):
                until(lambda count=count: stage.double.running == bool(count))
                time.sleep(SETTLE)
                before, started = service.cpu_seconds(), time.perf_counter()
                time.sleep(WINDOW)
                shares[count] = 100 * (service.cpu_seconds() - before) / (time.perf_counter() - started)
            until(lambda: stage.double.running == 0)
    section.table(f"Callers who wait for one slot, and the processor time of the worker over {WINDOW:g} s",
                  ["waiting", "% of a core"], [[count, share] for count, share in shares.items()])
    for count in WAITING:
        section.at_most(f"share of a core while {count} wait; while nobody does", shares[count], 5.0, " %", shares[0])
    return section
