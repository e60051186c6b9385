"""The cost of a choice among many Ollamas, under gevent: ``python -m benchmarks.choice`` prints µs as JSON."""

from gevent import monkey; monkey.patch_all()  # noqa: E702

import json  # noqa: E402
import os  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402

import gevent  # noqa: E402

from llama_api.upstreams import Breaker, Monitor, Slots, Upstream  # noqa: E402
from llama_api.upstreams.queue import Queue  # noqa: E402
from llama_api.upstreams.availability import Availability  # noqa: E402
from llama_api.upstreams.waiter import Waiter  # noqa: E402
from llama_api.waiting import Cancellation  # noqa: E402

MODEL = "llama3:8b"
WIDE, WAITING, CHOICES = 10, 1000, 300


class _Client:
    """An Ollama that is always available."""

    def inventory(self, seconds):
        return [{"name": MODEL, "digest": "x"}]

    def loaded(self, seconds):
        return [{"name": MODEL}]

    def version(self, seconds):
        return "0.33.0"


def _queue():
    """A queue before Ollamas with four slots each, and a function that makes it look at them again."""
    upstreams = [Upstream(f"o{number}", client := _Client(), Monitor(client), Breaker(), Slots(f"http://o{number}", 4))
                 for number in range(WIDE)]
    availability = Availability(upstreams)

    def look():
        for upstream in upstreams:
            upstream.monitor.probe()
        availability.on_probe()

    look()
    return Queue(availability, WAITING + CHOICES, 600), look


def _waiter():
    return Waiter(MODEL, lambda free: sorted(free, key=lambda one: (one.slots.share, one.slots.work)))


def free():
    """With all slots free: take one and give it back."""
    (queue, _), times = _queue(), []
    for _ in range(CHOICES):
        began = time.perf_counter()
        queue.give_back(queue.take(_waiter(), Cancellation()))
        times.append((time.perf_counter() - began) * 1e6)
    return times


def busy():
    """With all slots taken: give one to the longest waiter."""
    (queue, look), times = _queue(), []
    taken = [queue.take(_waiter(), Cancellation()) for _ in range(4 * WIDE)]
    waiters = [gevent.spawn(lambda: taken.append(queue.take(_waiter(), Cancellation())))
               for _ in range(WAITING + CHOICES)]
    gevent.sleep(0)
    while queue.waiting < len(waiters):
        gevent.sleep(0.01)
    for number in range(CHOICES):
        if number % 50 == 0:
            look()
        began = time.perf_counter()
        queue.give_back(taken[number])
        times.append((time.perf_counter() - began) * 1e6)
        gevent.sleep(0)
    gevent.killall(waiters)
    return times


def main():
    """Print the times of each case as JSON."""
    with tempfile.TemporaryDirectory() as base:
        os.environ["RUNTIME_DIRECTORY"] = base
        print(json.dumps({f"{WIDE} Ollamas, all free: take a slot and give it back": free(),
                          f"{WIDE} Ollamas, {WAITING:,} waiting: give a slot to the next": busy()}))


if __name__ == "__main__":
    main()
