"""Open pages: the cost of a hundred browsers that show the page and poll as it does."""

import http.client
import statistics
import threading
import time

from .contenders import Stage
from .load import Client
from .report import Section

PAGES = 100
PERIODS = {"nobody touches them": 15.0, "somebody uses each of them": 5.0}  # seconds between two looks, see timer.js
WINDOW, ROUNDS = 20.0, 3
CALL_EVERY = 0.5  # seconds, so that there is something new to see


def run():
    """Let the pages look, and compare the processor time of the service with that of as long without them."""
    section = Section("pages")
    rows, shares = [], {}
    with Stage() as stage:
        stage.upstream(record=0)
        service = stage.service(workers=2, cache_url=f"sqlite:///{stage.home}/answers.db")
        time.sleep(WINDOW)  # some points in the plots
        for name, period in PERIODS.items():
            found = [(_window(service, None)[0], *_window(service, period))
                     for _ in range(ROUNDS)]
            without, with_pages = (statistics.median(one[at] for one in found) for at in (0, 1))
            shares[name] = 100 * (with_pages - without)
            counts = [sum(one[2][at] for one in found) for at in (200, 304)]
            rows.append([name, period, *counts, 100 * without, 100 * with_pages, shares[name]])
    section.table(f"{PAGES} open pages, two workers, a call every {CALL_EVERY:g} s; medians of {ROUNDS} windows of"
                  f" {WINDOW:g} s", ["pages", "s between looks", "whole bodies", "304", "% of a core without them",
                                     "with them", "added"], rows)
    section.at_most(f"{PAGES} open pages that nobody touches, added, of a core", shares["nobody touches them"], 2.0,
                    " %")
    return section


def _window(service, period):
    """The share of a core that the service takes while the pages look, and how many bodies of which status they got."""
    statuses, over = {200: 0, 304: 0}, threading.Event()
    caller = threading.Thread(target=_call, args=(service, over))
    before, started = service.cpu_seconds(), time.perf_counter()
    caller.start()
    if period is None:
        time.sleep(WINDOW)
    else:
        _look(service, period, statuses)
    over.set()
    caller.join()
    return (service.cpu_seconds() - before) / (time.perf_counter() - started), statuses


def _look(service, period, statuses):
    """Be all pages for a window: each look on a connection of its own, with the version that the page has."""
    known, started = [""] * PAGES, time.perf_counter()
    for number in range(int(WINDOW / period * PAGES)):
        time.sleep(max(0.0, started + number * period / PAGES - time.perf_counter()))
        connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=10)
        connection.request("GET", "/stats", headers={"If-None-Match": known[number % PAGES]})
        answer = connection.getresponse()
        answer.read()
        known[number % PAGES] = answer.headers["ETag"]
        statuses[answer.status] += 1
        connection.close()


def _call(service, over):
    number = 0
    while not over.wait(CALL_EVERY):
        with Client(service.port) as client:
            client.ask("/generate", service.body(f"Question {number % 50}?"))
        number += 1
