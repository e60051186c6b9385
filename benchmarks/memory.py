"""Memory: a flood of prompts that are never asked again, against a small bound in bytes."""

import json
import statistics
import threading
import time

from .contenders import Stage
from .load import Client, wrk
from .report import Section

PROMPTS, BOUND = 200_000, 16 << 20
CONNECTIONS = 32
SLICE_SECONDS = 10
DEADLINE_SECONDS = 900
WARM = 2_000  # prompts before the figure of the idle service: by then all code has run


def run():
    """Flood the service and watch its memory."""
    section = Section("memory")
    with Stage() as stage:
        stage.upstream(record=0)
        service = stage.service(parallel=CONNECTIONS, cache_max_bytes=BOUND, cache_max_entries=10_000_000)
        (service.home / "unique.json").write_text('{"prompt": "Question @@ of the flood?"}')
        flood = Flood(service)
        flood.go()
    _report(section, flood)
    return section


class Flood:
    """The load, and a reading of memory and cache after each slice of it."""

    def __init__(self, service):
        self.service, self.readings, self.prompts, self.failed, self.seconds = service, [], 0, 0, 0.0

    def go(self):
        """Ask until PROMPTS have been asked, or the deadline has passed."""
        self._slice(1)
        while self.prompts < PROMPTS and self.seconds < DEADLINE_SECONDS:
            self._slice(2 if self.prompts < WARM * 8 else SLICE_SECONDS)

    def _slice(self, seconds):
        peak, done = [0], threading.Event()

        def watch():
            while not done.wait(0.2):
                peak[0] = max(peak[0], self.service.rss())

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            found = wrk(self.service.url, self.service.home / "unique.json", CONNECTIONS, seconds, "unique",
                        salt=f"{self.prompts}")
        finally:
            done.set()
            watcher.join()
        self.prompts += found["requests"]
        self.failed += found["failed"]
        self.seconds += found["seconds"]
        self.readings.append({"prompts": self.prompts, "rss": max(peak[0], self.service.rss()), **self._cache()})

    def _cache(self):
        deadline = time.monotonic() + 10
        while True:
            try:
                with Client(self.service.port) as client:
                    found = json.loads(client.ask("/cache", method="GET")[2])
                return {name: found[name] for name in ("entries", "bytes", "evictions")}
            except OSError:
                if time.monotonic() > deadline:
                    raise


def _report(section, flood):
    readings = flood.readings
    section.data = {"readings": readings, "bound": BOUND}
    full = next((at for at, one in enumerate(readings) if one["evictions"]), len(readings) - 1)
    at_bound = statistics.median(one["rss"] for one in readings[full:full + 3])
    at_end = statistics.median(one["rss"] for one in readings[-3:])
    shown = [readings[0], *readings[1:full + 1:max(1, full // 3)], *readings[full + 1::max(1, len(readings) // 8)]]
    shown += [readings[-1]] if readings[-1] not in shown else []
    section.table(f"{flood.prompts:,} prompts that are never asked again, bound {BOUND / 1e6:.1f} MB "
                  f"({flood.prompts / flood.seconds:,.0f} misses/s, {flood.failed} failed)",
                  ["prompts", "RSS of the worker MB", "entries", "bytes in the cache MB", "evictions"],
                  [[one["prompts"], one["rss"] / 1e6, one["entries"], one["bytes"] / 1e6, one["evictions"]]
                   for one in shown])
    section.at_least("prompts of the flood", flood.prompts, PROMPTS)
    section.at_most("memory over the flood, growth since the first second, of the bound",
                    (at_end - readings[0]["rss"] + readings[0]["bytes"]) / BOUND, 1.1, " ×")
    section.at_most("memory over the flood, growth since the bound was reached", (at_end - at_bound) / 1e6,
                    0.1 * BOUND / 1e6, " MB")
