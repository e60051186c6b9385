"""The LRU alone: get and set-and-evict by size, compared with cachetools and cachelib; and the size of an entry."""

import json
import random
import statistics
import subprocess
import sys
import time

from .report import Section

SIZES = (1_000, 10_000, 100_000, 1_000_000)
SLOW_FROM = 100_000  # SimpleCache sorts all its entries to evict one: 10 µs an entry and more
ROUNDS, CALLS = 7, 20_000
NAMES = {"ours": "llama_api LRUCache", "cachetools": "cachetools LRUCache + lock", "cachelib": "cachelib SimpleCache"}


def run():
    """Measure in a process of its own, patched by gevent as the service is."""
    output = subprocess.run([sys.executable, "-m", "benchmarks.lru"], capture_output=True, text=True, check=True,
                            timeout=600).stdout
    found = json.loads(output)
    section = Section("lru", data=found)
    rows = [[NAMES[name], int(size), one["get"], one["set"]]
            for size, by_name in found["times"].items() for name, one in by_name.items()]
    section.table(f"LRU, µs a call, medians of {ROUNDS} interleaved rounds of {CALLS:,} calls",
                  ["cache", "entries", "get", "set and evict"], rows)
    for what in ("get", "set"):
        ours = {int(size): one["ours"][what] for size, one in found["times"].items()}
        section.at_most_of(f"LRU {what} at 10⁶ entries; at 10³", ours[SIZES[-1]], ours[SIZES[0]], 3.0, " µs")
        worst = max(found["times"].values(), key=lambda one: one["ours"][what] / one["cachetools"][what])
        section.at_most_of(f"LRU {what} at the worst size; cachetools + lock", worst["ours"][what],
                           worst["cachetools"][what], 1.0, " µs")
    weight = found["weight"]
    section.table("What an entry takes beside its text, bytes", ["answers of", "by tracemalloc", "by RSS", "counted"],
                  [[f"{one['characters']} characters", one["traced"], one["resident"], one["counted"]]
                   for one in weight])
    section.at_most("an entry's memory beside its text, of what is counted for it",
                    max(max(one["traced"], one["resident"]) / one["counted"] for one in weight), 1.0, " ×")
    return section


def _contenders(size):
    import threading

    from cachelib import SimpleCache
    from cachetools import LRUCache as Reference

    from llama_api.cache import LRUCache

    class Locked:
        """cachetools' LRUCache as its documentation has it used by threads."""

        def __init__(self):
            self._cache, self._lock = Reference(size), threading.Lock()

        def get(self, key):
            with self._lock:
                return self._cache.get(key)

        def set(self, key, value):
            with self._lock:
                self._cache[key] = value

    made = {"ours": LRUCache(size, 1 << 40), "cachetools": Locked()}
    if size < SLOW_FROM:
        made["cachelib"] = SimpleCache(threshold=size, default_timeout=0)
    return made


def _times(size):
    """Median µs of get and set at ``size`` entries, by contender."""
    chooser = random.Random(5)
    caches = _contenders(size)
    keys = [f"{number:064x}" for number in range(size)]
    value = "x" * 400
    for cache in caches.values():
        for key in keys:
            cache.set(key, value)
    found = {name: {"get": [], "set": []} for name in caches}
    fresh = size
    for _ in range(ROUNDS):
        asked = chooser.choices(keys, k=CALLS)
        new = [f"{fresh + number:064x}" for number in range(CALLS)]
        fresh += CALLS
        for name in chooser.sample(sorted(caches), len(caches)):
            calls = CALLS if name != "cachelib" else max(20, CALLS * 1000 // size // 20)
            found[name]["get"].append(_clocked(caches[name].get, asked[:calls]))
            found[name]["set"].append(_clocked(lambda key, put=caches[name].set: put(key, value), new[:calls]))
        keys[:] = (keys + new)[-size:]
    return {name: {what: statistics.median(values) for what, values in one.items()} for name, one in found.items()}


def _clocked(call, keys):
    started = time.perf_counter()
    for key in keys:
        call(key)
    return (time.perf_counter() - started) / len(keys) * 1e6


def _weight(characters, count=50_000):
    """Bytes of an entry in addition to its text, as counted by Python, the system and the cache."""
    import gc
    import tracemalloc

    import psutil

    from llama_api.answer import Answer, Completion
    from llama_api.cache import AnswerCache, LRUCache
    from llama_api.cache.lru import OVERHEAD

    def fill():
        cache = AnswerCache(LRUCache(count * 2, 1 << 40))
        for number in range(count):
            text = f"{number:08}" + "x" * (characters - 8)
            tokens, times = (1000 + number, 1000 + number, None), range(10**9 + number, 10**9 + number + 4)
            made = Answer("llama3:8b", text, completion=Completion("stop", *tokens, *times), digest="digest",
                          host="a:11434", created=1e9 + number)
            cache.set(f"{number:064x}", made, cache.epoch)
        return cache

    text_bytes = sys.getsizeof("x" * characters)
    process = psutil.Process()
    gc.collect()
    before = process.memory_info().rss
    cache = fill()
    resident = (process.memory_info().rss - before) / count - text_bytes
    del cache
    tracemalloc.start()
    cache = fill()
    traced = tracemalloc.get_traced_memory()[0] / count - text_bytes
    tracemalloc.stop()
    return {"characters": characters, "traced": traced, "resident": resident, "counted": OVERHEAD,
            "entries": len(cache.front)}


def main():
    """Print all measurements as JSON."""
    from gevent import monkey
    monkey.patch_all()
    weight = [_weight(400), _weight(4000)]
    print(json.dumps({"times": {size: _times(size) for size in SIZES}, "weight": weight}))


if __name__ == "__main__":
    main()
