"""One Zipf trace through LRUCache, a reference LRU and the stock SimpleCache: a table of hits and evictions.

    python -m benchmarks.lru_trace [accesses]
"""

import random
import sys
import time
from itertools import accumulate

import cachetools
from cachelib import SimpleCache

from llama_api.cache import LRUCache

KEYS, ENTRIES, SKEW, SEED = 20_000, 1_000, 0.9, 20


def zipf_trace(accesses, keys=KEYS, skew=SKEW, seed=SEED):
    """Keys as readers ask for them: the n-th most popular one is asked for in proportion to n ** -skew."""
    weights = list(accumulate((rank + 1) ** -skew for rank in range(keys)))
    names = [f"key-{rank}" for rank in range(keys)]
    return random.Random(seed).choices(names, cum_weights=weights, k=accesses)


class Reference(cachetools.LRUCache):
    """The LRU of cachetools, counting what it evicts."""

    evictions = 0

    def popitem(self):
        self.evictions += 1
        return super().popitem()


def replay(trace, get, put):
    """Ask for each key of ``trace``, store what is missing; the result says for each access whether it was a hit."""
    hits = bytearray(len(trace))
    for at, key in enumerate(trace):
        if get(key) is not None:
            hits[at] = 1
        else:
            put(key, key)
    return bytes(hits)


def run(trace, entries=ENTRIES):
    """Replay ``trace`` on all three: by name a tuple of hits, their count, evictions, what is left, and seconds."""
    ours, reference = LRUCache(entries, max_bytes=1 << 40), Reference(entries)
    stock = SimpleCache(threshold=entries, default_timeout=0)
    results = {}
    for name, get, put, evicted, left in (
            ("LRUCache", ours.get, ours.set, lambda: ours.evictions, lambda: {key for key in trace if ours.has(key)}),
            ("reference LRU", reference.get, reference.__setitem__, lambda: reference.evictions,
             lambda: set(reference)),
            ("SimpleCache", stock.get, stock.set, lambda: None, lambda: set(stock._cache))):
        began = time.perf_counter()
        hits = replay(trace, get, put)
        seconds = time.perf_counter() - began
        survivors = left()
        evictions = evicted()
        if evictions is None:
            evictions = len(trace) - sum(hits) - len(survivors)
        results[name] = (hits, sum(hits), evictions, survivors, seconds)
    return results


def main():
    """Print the table; exit with 1 unless ours equals the reference at every single access."""
    accesses = int(sys.argv[1].replace("_", "")) if len(sys.argv) > 1 else 1_000_000
    results = run(zipf_trace(accesses))
    print(f"{accesses:,} accesses, Zipf {SKEW} over {KEYS:,} keys, room for {ENTRIES:,}, seed {SEED}\n")
    print(f"{'cache':14} {'hits':>9} {'hit ratio':>10} {'evictions':>10} {'left':>6} {'us/access':>10}")
    for name, (_, hits, evictions, survivors, seconds) in results.items():
        print(f"{name:14} {hits:9,} {hits / accesses:10.4f} {evictions:10,} {len(survivors):6,}"
              f" {seconds / accesses * 1e6:10.2f}")
    equal = results["LRUCache"][:4] == results["reference LRU"][:4]
    print(f"\nLRUCache equals the reference at every access: {'yes' if equal else 'NO'}")
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
