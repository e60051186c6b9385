"""The LRU: exact against a model, bounded twice, right under many threads, and at home in flask-caching."""

import random
import sys
from datetime import timedelta

import flask_caching
import pytest
from flask import Flask
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from benchmarks.lru_trace import run, zipf_trace
from llama_api.cache import Entry, LRUCache
from llama_api.cache.lru import OVERHEAD
from tests.support.fakes import Clock, answer, in_threads

KEYS = [f"key-{n}" for n in range(14)]
ROOM = 1 << 30
key_names = st.sampled_from(KEYS)
texts = st.integers(0, 330).map("x".__mul__)  # with 8,000 bytes of room some are too large
timeouts = st.sampled_from([None, None, 0, 1, 2.5, 10])


def weight(value):
    """The size that the cache counts for ``value``."""
    return OVERHEAD + sys.getsizeof(value)


class Model:
    """An LRU that is too simple to be wrong: a list, the least recently used first, every step a walk over it."""

    def __init__(self, max_entries, max_bytes, default_timeout, clock):
        self.max_entries, self.max_bytes, self.default_timeout = max_entries, max_bytes, default_timeout
        self.clock, self.rows = clock, []
        self.evictions = 0

    @property
    def bytes(self):
        return sum(weight(value) for _, value, _ in self.rows)

    def find(self, key):
        return next((row for row in self.rows if row[0] == key), None)

    def lives(self, row):
        return row is not None and (row[2] is None or self.clock() < row[2])

    def get(self, key):
        row = self.find(key)
        if row is not None:
            self.rows.remove(row)
        if not self.lives(row):
            return None
        self.rows.append(row)
        return row[1]

    def set(self, key, value, timeout):
        self.delete(key)
        if weight(value) > self.max_bytes // 8 or self.max_entries == 0:
            return False
        timeout = self.default_timeout if timeout is None else timeout
        self.rows.append((key, value, self.clock() + timeout if timeout else None))
        while len(self.rows) > self.max_entries or self.bytes > self.max_bytes:
            self.rows.pop(0)
            self.evictions += 1
        return True

    def add(self, key, value, timeout):
        return not self.has(key) and self.set(key, value, timeout)

    def has(self, key):
        return self.lives(self.find(key))

    def delete(self, key):
        row = self.find(key)
        if row is not None:
            self.rows.remove(row)
        return row is not None


class LRUMachine(RuleBasedStateMachine):
    """Drives the cache and the model side by side; they must agree on everything that can be seen."""

    @initialize(max_entries=st.integers(0, 12), max_bytes=st.integers(5_000, 9_000), default=st.sampled_from([0, 3]))
    def begin(self, max_entries, max_bytes, default):
        self.clock = Clock()
        self.cache = LRUCache(max_entries, max_bytes, default, clock=self.clock)
        self.model = Model(max_entries, max_bytes, default, self.clock)

    @rule(key=key_names)
    def get(self, key):
        assert self.cache.get(key) is self.model.get(key)

    @rule(key=key_names, value=texts, timeout=timeouts)
    def set(self, key, value, timeout):
        assert self.cache.set(key, value, timeout) is self.model.set(key, value, timeout)

    @rule(key=key_names, value=texts, timeout=timeouts)
    def add(self, key, value, timeout):
        assert self.cache.add(key, value, timeout) is self.model.add(key, value, timeout)

    @rule(key=key_names)
    def delete(self, key):
        assert self.cache.delete(key) is self.model.delete(key)

    @rule(seconds=st.sampled_from([0.5, 1, 5]))
    def tick(self, seconds):
        self.clock.tick(seconds)

    @rule()
    def clear(self):
        assert self.cache.clear() is True
        self.model.rows.clear()

    @rule(keys=st.lists(key_names, max_size=20), value=texts)
    def set_in_a_row(self, keys, value):
        for key in keys:
            assert self.cache.set(key, value) is self.model.set(key, value, None)

    @invariant()
    def they_agree(self):
        cache, model = self.cache, self.model
        assert (len(cache), cache.bytes, cache.evictions) == (len(model.rows), model.bytes, model.evictions)
        assert [key for key in KEYS if cache.has(key)] == [key for key in KEYS if model.has(key)]
        assert len(cache) <= cache.max_entries and cache.bytes <= cache.max_bytes

    def teardown(self):
        """Squeeze the rest out one by one: the order of eviction is the model's."""
        if not hasattr(self, "cache"):
            return
        for number in range(self.cache.max_entries + 1):
            self.cache.set(f"new-{number}", "")
            self.model.set(f"new-{number}", "", None)
            self.they_agree()


LRUMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40)


class TestAgainstTheModel(LRUMachine.TestCase):
    """Any order of operations leaves cache and model alike."""


def test_a_zipf_trace_hits_and_evicts_as_a_reference_lru():
    """At each of 200,000 accesses the outcome is the reference's; the stock SimpleCache does worse."""
    results = run(zipf_trace(200_000))
    assert results["LRUCache"][:4] == results["reference LRU"][:4]
    assert results["SimpleCache"][1] < 0.9 * results["LRUCache"][1]


# Bounds


@pytest.fixture
def lru():
    return LRUCache(3, ROOM)


def fill(cache, keys="abc"):
    """Store each letter of ``keys`` under itself."""
    for key in keys:
        cache.set(key, key)


def kept(cache, keys="abcdef"):
    """The letters that are in the cache."""
    return "".join(key for key in keys if cache.has(key))


@pytest.mark.parametrize("use, gone", [
    (lambda cache: None, "a"), (lambda cache: cache.get("a"), "b"), (lambda cache: cache.set("a", "again"), "b"),
    (lambda cache: cache.has("a"), "a"), (lambda cache: cache.add("a", "other"), "a"),
    (lambda cache: [cache.get(key) for key in "abc"], "a"), (lambda cache: [cache.get(key) for key in "cba"], "c")])
def test_the_least_recently_used_goes(lru, use, gone):
    """Being served or written makes an entry the newest; being looked for does not."""
    fill(lru)
    use(lru)
    lru.set("d", "d")
    assert kept(lru) == "abcd".replace(gone, "")
    assert lru.evictions == 1


def test_overwriting_evicts_nothing(lru):
    """A full cache takes a new value for a key it has without losing another."""
    fill(lru)
    for _ in range(10):
        lru.set("b", "B")
    assert kept(lru) == "abc" and lru.evictions == 0 and lru.get("b") == "B"


def test_bytes_bound_as_well_as_entries():
    """Values that together outweigh the bound push out as many of the oldest as it takes."""
    small, large = "x" * 100, "x" * 2000
    cache = LRUCache(1000, 16 * weight(large))
    for number in range(30):
        cache.set(f"small-{number}", small)
    assert len(cache) == 30
    for number in range(16):
        cache.set(f"large-{number}", large)
    assert len(cache) == 16 and cache.bytes == cache.max_bytes and cache.evictions == 30


def test_an_eighth_of_the_bytes_is_the_most_a_value_may_weigh():
    """A value of exactly an eighth is kept, one byte more is not, and what it should replace is gone."""
    limit = 8000
    fits = "x" * (limit // 8 - weight(""))
    cache = LRUCache(1000, limit)
    assert cache.set("a", fits) and cache.get("a") == fits
    assert cache.set("a", fits + "x") is False
    assert cache.get("a") is None and len(cache) == cache.bytes == cache.evictions == 0


def test_without_entries_nothing_is_kept():
    """A bound of 0 entries is no cache at all."""
    cache = LRUCache(0, ROOM)
    assert not cache.set("a", "a") and not cache.add("a", "a") and len(cache) == cache.bytes == 0


def test_an_entry_weighs_its_text():
    """The weight of an answer grows with its text, and characters beyond Latin weigh more."""
    weights = [sys.getsizeof(Entry(answer(text), 0.0, 0.0)) for text in ("", "x" * 1000, "漢" * 1000)]
    assert weights[1] - weights[0] == 1000 and weights[2] > 2000


# Time


def test_a_timeout_runs_on_the_clock_given():
    """An entry lives until its time has passed, one without a timeout forever."""
    clock = Clock()
    cache = LRUCache(10, ROOM, default_timeout=5, clock=clock)
    cache.set("default", 1)
    cache.set("short", 2, timeout=1)
    cache.set("ever", 3, timeout=0)
    clock.tick(0.999)
    assert cache.get("short") == 2
    clock.tick(0.001)
    assert cache.get("short") is None and len(cache) == 2
    clock.tick(4)
    assert not cache.has("default") and cache.add("default", 4) and cache.get("default") == 4
    clock.tick(1e9)
    assert cache.get("ever") == 3


# Threads


def test_many_threads_lose_and_invent_nothing():
    """Eight threads of gets and sets: every count is exact and both bounds hold."""
    cache = LRUCache(100, ROOM)
    steps = 3000

    def work(number):
        chance = random.Random(number)
        for step in range(steps):
            cache.set(f"{number}-{step}", "x" * chance.randrange(50))
            cache.get(f"{number}-{max(0, step - chance.randrange(20))}")

    assert in_threads(8, work) == [None] * 8
    assert len(cache) == 100 and cache.evictions == 8 * steps - 100
    for key in [f"{number}-{step}" for number in range(8) for step in range(steps)]:
        cache.delete(key)
    assert len(cache) == cache.bytes == 0


def test_threads_on_the_same_keys_keep_the_books_straight():
    """Overwriting, deleting and clearing the same few keys at once leaves bytes equal to what is there."""
    cache = LRUCache(8, 8 * 8 * 700)

    def work(number):
        chance = random.Random(number)
        for _ in range(3000):
            key, act = chance.choice(KEYS), chance.random()
            if act < 0.5:
                cache.set(key, "x" * chance.randrange(600))
            elif act < 0.9:
                cache.get(key)
            elif act < 0.999:
                cache.delete(key)
            else:
                cache.clear()

    assert in_threads(8, work) == [None] * 8
    assert cache.bytes == sum(weight(value) for key in KEYS if (value := cache.get(key)) is not None)


def test_one_of_many_threads_adds():
    """Of threads that add one key at once exactly one succeeds, for each of many keys."""
    cache = LRUCache(1000, ROOM)
    added = in_threads(8, lambda number: sum(cache.add(f"key-{n}", number) for n in range(500)))
    assert sum(added) == len(cache) == 500


# flask-caching


@pytest.fixture
def flask_cache():
    """The backend as flask-caching makes it from its configuration."""
    app = Flask("test")
    cache = flask_caching.Cache(app, config={
        "CACHE_TYPE": "llama_api.cache.LRUCache", "CACHE_DEFAULT_TIMEOUT": 7, "CACHE_THRESHOLD": 3,
        "CACHE_OPTIONS": {"max_bytes": 80_000}})
    with app.app_context():
        yield cache


def test_flask_caching_makes_it_with_its_bounds(flask_cache):
    """The dotted path loads the class, and threshold, options and default timeout arrive."""
    backend = flask_cache.cache
    assert type(backend) is LRUCache
    assert (backend.max_entries, backend.max_bytes, backend.default_timeout) == (3, 80_000, 7)


def test_options_go_before_the_threshold():
    """``max_entries`` among the options wins over CACHE_THRESHOLD, which has a default of its own."""
    cache = flask_caching.Cache(Flask("test"), config={
        "CACHE_TYPE": "llama_api.cache.LRUCache", "CACHE_OPTIONS": {"max_entries": 12}})
    assert cache.cache.max_entries == 12


def test_values_are_never_pickled(flask_cache):
    """A get returns the very object that was set, even one that cannot be pickled."""
    value = (lambda: None, object())
    flask_cache.set("a", value)
    assert flask_cache.get("a") is value


def test_the_whole_interface_of_flask_caching_works(flask_cache):
    """Many at once, has, delete and clear through the extension, within the bounds."""
    flask_cache.set_many({"a": 1, "b": 2, "c": 3, "d": 4})
    assert flask_cache.get_many("a", "b", "d") == [None, 2, 4]
    assert flask_cache.get_dict("c", "x") == {"c": 3, "x": None}
    assert flask_cache.has("b") and not flask_cache.has("a")
    assert not flask_cache.add("b", 9) and flask_cache.add("a", 9)
    assert flask_cache.delete_many("b", "nothing", "d") and flask_cache.delete("a") and not flask_cache.delete("a")
    flask_cache.set("e", 5)
    flask_cache.clear()
    assert len(flask_cache.cache) == flask_cache.cache.bytes == 0


def test_the_decorators_of_flask_caching_work(flask_cache):
    """A memoized function runs once for each argument, until it is forgotten."""
    calls = []

    @flask_cache.memoize(timeout=timedelta(minutes=1))
    def double(number):
        calls.append(number)
        return 2 * number

    assert [double(2), double(2), double(3), double(2)] == [4, 4, 6, 4] and calls == [2, 3]
