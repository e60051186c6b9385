"""What both shared stores promise, proved on real ones, and the guard around them on a fake."""

import logging
import threading
import time
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llama_api.cache.guarded import OVERHEAD, Claim, GuardedStore, StoreError, open_store
from tests.support.fakes import until
from tests.support.redis_server import RedisServer

KEYS = [f"{n:064x}" for n in range(40)]
LONG = 30.0  # seconds that no test takes


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory):
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(params=["sqlite", "redis"])
def url(request, tmp_path):
    """The URL of an empty store of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/answers.db"
    server = request.getfixturevalue("redis_server")
    with server.client() as client:
        client.flushall()
    return server.url


@pytest.fixture
def opened(url):
    """Open the store as often as wanted: each is another process's, or host's, view of it."""
    stores = []

    def open_one(max_entries=1000, max_bytes=1 << 20):
        stores.append(open_store(url, max_entries, max_bytes))
        return stores[-1]

    yield open_one
    for store in stores:
        store.close()


@pytest.fixture
def store(opened):
    return opened()


# Entries


def test_what_is_set_is_got_byte_for_byte(store):
    """Any bytes come back as they were, the empty ones and large ones too."""
    values = {KEYS[0]: b"", KEYS[1]: bytes(range(256)), KEYS[2]: b"\r\n$-1\r\n\x00", KEYS[3]: bytes(300_000)}
    for key, value in values.items():
        assert store.set(key, value) == 0
    assert {key: store.get(key) for key in values} == values
    assert store.get(KEYS[4]) is None


def test_every_view_sees_the_same(opened):
    """What one process stores, touches, deletes or clears is so for all."""
    here, there = opened(), opened()
    here.set(KEYS[0], b"one")
    assert there.get(KEYS[0]) == b"one" and there.size() == (1, 3 + OVERHEAD)
    there.delete(KEYS[0])
    assert here.get(KEYS[0]) is None and here.size() == (0, 0)
    here.set(KEYS[1], b"two")
    there.clear()
    assert here.get(KEYS[1]) is None and here.size() == (0, 0)


def test_entries_survive_the_last_view(opened):
    """A store that everybody has left is found again as it was."""
    first = opened()
    first.set(KEYS[0], b"kept")
    first.close()
    assert opened().get(KEYS[0]) == b"kept"
    assert first.get(KEYS[0]) == b"kept"  # it connects again by itself


def test_an_overwrite_counts_once_and_evicts_nobody(opened):
    store = opened(max_entries=2)
    store.set(KEYS[0], b"a")
    store.set(KEYS[1], b"b")
    assert store.set(KEYS[0], b"longer") == 0
    assert store.size() == (2, 7 + 2 * OVERHEAD)
    assert store.get(KEYS[0]) == b"longer" and store.get(KEYS[1]) == b"b"


def test_the_least_recently_touched_goes_first(opened):
    """Getting does not change the order, setting and touching do, the last of a batch most."""
    store = opened(max_entries=3)
    for key in KEYS[:3]:
        store.set(key, b"x")
    store.get(KEYS[0])
    store.touch([KEYS[1], KEYS[0], KEYS[39]])
    assert [store.set(key, b"x") for key in KEYS[3:5]] == [1, 1]
    assert [store.get(key) is not None for key in KEYS[:5]] == [True, False, False, True, True]


def test_bytes_evict_as_many_as_it_takes(opened):
    store = opened(max_bytes=4 * (OVERHEAD + 100))
    for key in KEYS[:4]:
        assert store.set(key, bytes(100)) == 0
    assert store.set(KEYS[4], bytes(100 + OVERHEAD)) == 2
    assert [store.get(key) is not None for key in KEYS[:5]] == [False, False, True, True, True]


def test_what_could_never_fit_is_not_stored_and_evicts_nobody(opened):
    store = opened(max_bytes=1000)
    store.set(KEYS[0], b"small")
    store.set(KEYS[1], b"small")
    assert store.set(KEYS[1], bytes(1000)) == 0
    assert store.get(KEYS[1]) is None and store.get(KEYS[0]) == b"small"
    assert store.size() == (1, 5 + OVERHEAD)


STEPS = st.lists(st.one_of(
    st.tuples(st.just("set"), st.integers(0, 7), st.integers(0, 900)),
    st.tuples(st.just("touch"), st.lists(st.integers(0, 7), max_size=4)),
    st.tuples(st.just("get"), st.integers(0, 7)),
    st.tuples(st.just("delete"), st.integers(0, 7)),
    st.tuples(st.just("clear"))), max_size=30)


class Model:
    """An exact LRU in ten lines, to hold the stores against."""

    def __init__(self, max_entries, max_bytes):
        self.max_entries, self.max_bytes, self.items = max_entries, max_bytes, OrderedDict()

    def set(self, key, value):
        self.items.pop(key, None)
        if len(value) + OVERHEAD > self.max_bytes:
            return 0
        self.items[key] = value
        before = len(self.items)
        while len(self.items) > self.max_entries or self.size()[1] > self.max_bytes:
            self.items.popitem(last=False)
        return before - len(self.items)

    def touch(self, keys):
        for key in keys:
            if key in self.items:
                self.items.move_to_end(key)

    def get(self, key):
        return self.items.get(key)

    def delete(self, key):
        self.items.pop(key, None)

    def clear(self):
        self.items.clear()

    def size(self):
        return len(self.items), sum(len(value) + OVERHEAD for value in self.items.values())


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_it_is_an_exact_lru(opened, steps):
    """Any sequence of operations, spread over two views, ends as it does in the model."""
    views = opened(4, 2000), opened(4, 2000)
    views[0].clear()
    model = Model(4, 2000)
    for count, (operation, *args) in enumerate(steps):
        if operation == "touch":
            args = [[KEYS[n] for n in args[0]]]
        elif args:
            args = [KEYS[args[0]], *(bytes([count]) * size for size in args[1:])]
        assert getattr(views[count % 2], operation)(*args) == getattr(model, operation)(*args)
        assert views[0].size() == model.size()
    assert {key: views[1].get(key) for key in KEYS[:8]} == {key: model.get(key) for key in KEYS[:8]}


def test_many_threads_keep_the_books_right(opened):
    """Under a crowd of writers no bound is passed, nothing is lost and the totals stay exact."""
    views = [opened(max_entries=20) for _ in range(3)]

    def work(number):
        mine = views[number % 3]
        for turn in range(30):
            key = KEYS[(number * 7 + turn) % 40]
            again(lambda: mine.set(key, key.encode()))
            assert again(lambda: mine.get(key)) in (None, key.encode())
            again(lambda: mine.touch(KEYS[number:number + 3]))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    there = [key for key in KEYS if views[0].get(key)]
    assert len(there) == 20 and views[1].size() == (20, 20 * (64 + OVERHEAD))


def again(operation):
    """Do it, again if the store was busy: these tests crowd it far beyond its patience on a slow machine."""
    for _ in range(50):
        try:
            return operation()
        except StoreError:
            time.sleep(0.01)
    return operation()


# Claims


def test_one_claims_and_the_others_learn_who(opened):
    here, there = opened(), opened()
    assert here.claim(KEYS[0], "mine", LONG) is None
    assert there.claim(KEYS[0], "yours", LONG) == Claim("mine", None)
    assert there.claim(KEYS[1], "yours", LONG) is None
    assert here.claim(KEYS[0], "mine", LONG) is None  # asking twice does no harm


def test_of_twenty_at_once_exactly_one_wins(opened):
    views = [opened() for _ in range(4)]
    for key in KEYS[:10]:
        start = threading.Barrier(20)

        def race(number):
            start.wait()
            return again(lambda: views[number % 4].claim(key, f"t{number}", LONG))

        with ThreadPoolExecutor(20) as pool:
            results = list(pool.map(race, range(20)))
        assert results.count(None) == 1
        assert {found for found in results if found} == {Claim(f"t{results.index(None)}", None)}


def test_an_expired_claim_is_taken_over(opened):
    """When a holder is silent its followers see it gone and exactly one succeeds it."""
    here, there = opened(), opened()
    here.claim(KEYS[0], "dead", 0.15)
    assert there.peek(KEYS[0], "dead") == Claim("dead", None)
    until(lambda: there.peek(KEYS[0], "dead") is None)
    assert not here.renew(KEYS[0], "dead", LONG)
    assert there.claim(KEYS[0], "heir", LONG) is None
    here.settle(KEYS[0], "dead", b"too late", LONG)
    here.release(KEYS[0], "dead")
    assert here.claim(KEYS[0], "dead", LONG) == Claim("heir", None)


def test_a_renewed_claim_lives_on(opened):
    here, there = opened(), opened()
    here.claim(KEYS[0], "mine", 0.3)
    end = time.monotonic() + 0.7
    while time.monotonic() < end:
        assert here.renew(KEYS[0], "mine", 0.3)
        assert there.claim(KEYS[0], "yours", LONG) == Claim("mine", None)
        time.sleep(0.02)
    assert not there.renew(KEYS[0], "yours", LONG)
    assert not there.renew(KEYS[1], "mine", LONG)


def test_an_outcome_is_read_while_it_lingers_and_gives_way_to_a_new_claim(opened):
    here, there = opened(), opened()
    here.claim(KEYS[0], "mine", LONG)
    here.settle(KEYS[0], "mine", b"\x00answer", LONG)
    assert there.peek(KEYS[0], "mine") == Claim("mine", b"\x00answer")
    here.release(KEYS[0], "mine")
    assert there.peek(KEYS[0], "mine") == Claim("mine", b"\x00answer")
    assert not here.renew(KEYS[0], "mine", LONG)
    assert there.claim(KEYS[0], "yours", LONG) is None
    assert here.peek(KEYS[0], "mine") is None
    there.settle(KEYS[0], "yours", b"soon gone", 0.1)
    until(lambda: here.peek(KEYS[0], "yours") is None)


def test_only_the_holder_settles_and_releases(opened):
    here, there = opened(), opened()
    here.claim(KEYS[0], "mine", LONG)
    there.settle(KEYS[0], "yours", b"forged", LONG)
    there.release(KEYS[0], "yours")
    assert there.peek(KEYS[0], "mine") == Claim("mine", None)
    here.release(KEYS[0], "mine")
    assert there.peek(KEYS[0], "mine") is None
    assert there.claim(KEYS[0], "yours", LONG) is None


def test_a_holder_knows_whether_anybody_waits(opened):
    """A follower's look counts for two seconds, and for the claim it looked at only."""
    here, there = opened(), opened()
    here.claim(KEYS[0], "mine", LONG)
    assert not here.wanted(KEYS[0], "mine")
    there.peek(KEYS[0], "another")
    assert not here.wanted(KEYS[0], "mine")
    there.peek(KEYS[0], "mine")
    assert here.wanted(KEYS[0], "mine") and not here.wanted(KEYS[0], "another")
    until(lambda: not here.wanted(KEYS[0], "mine"))
    assert there.claim(KEYS[0], "yours", LONG) and here.wanted(KEYS[0], "mine")


def test_a_purge_leaves_claims_alone(store):
    store.claim(KEYS[0], "mine", LONG)
    store.clear()
    assert store.peek(KEYS[0], "mine") == Claim("mine", None)


def test_wrong_urls_are_refused_in_a_sentence(tmp_path):
    with pytest.raises(StoreError, match="directory .* does not exist"):
        open_store(f"sqlite:///{tmp_path}/missing/answers.db", 10, 1000)
    for url in ("memory://", "sqlite:///", "mysql://host/db", ""):
        with pytest.raises(StoreError, match="sqlite:///PATH"):
            open_store(url, 10, 1000)


# The guard


class Fragile:
    """A store that fails when told to and counts what reaches it."""

    name, concurrency = "fake://store", 2

    def __init__(self):
        self.fault, self.calls, self.gate = None, [], None

    def _do(self, name, result=None):
        self.calls.append(name)
        if self.gate:
            self.gate.wait()
        if self.fault:
            raise StoreError(self.fault)
        return result

    def get(self, key):
        return self._do("get", b"there")

    def set(self, key, value):
        return self._do("set", 3)

    def touch(self, keys):
        self._do("touch")

    def delete(self, key):
        self._do("delete")

    def clear(self):
        self._do("clear")

    def size(self):
        return self._do("size", (1, 300))

    def claim(self, key, token, ttl):
        return self._do("claim", Claim("other", None))

    def renew(self, key, token, ttl):
        return self._do("renew", False)

    def settle(self, key, token, outcome, linger):
        self._do("settle")

    def release(self, key, token):
        self._do("release")

    def peek(self, key, token):
        return self._do("peek", Claim(token, b"done"))

    def wanted(self, key, token):
        return self._do("wanted", True)

    def ping(self):
        self._do("ping")

    def close(self):
        self._do("close")


@pytest.fixture
def fragile():
    return Fragile()


@pytest.fixture
def errors():
    return []


@pytest.fixture
def now():
    return [100.0]


@pytest.fixture
def guard(fragile, errors, now):
    guard = GuardedStore(fragile, errors.append, clock=lambda: now[0], probe_every=0.01)
    yield guard
    guard.close()


OPERATIONS = [  # operation, arguments, what a store that is up says, what is known of one that is down
    ("get", ("k",), b"there", None), ("set", ("k", b"v"), 3, 0), ("touch", (["k"],), None, None),
    ("delete", ("k",), None, None), ("clear", (), None, None), ("size", (), (1, 300), None),
    ("claim", ("k", "t", 1), Claim("other", None), None), ("renew", ("k", "t", 1), False, True),
    ("settle", ("k", "t", b"o", 1), None, None), ("release", ("k", "t"), None, None),
    ("peek", ("k", "t"), Claim("t", b"done"), None), ("wanted", ("k", "t"), True, False)]


@pytest.mark.parametrize("operation,args,known,unknown", OPERATIONS)
def test_a_failure_is_nothing_known(guard, fragile, errors, operation, args, known, unknown):
    """Each operation passes through while all is well, and gives its safe answer when it fails and afterwards."""
    assert getattr(guard, operation)(*args) == known
    assert guard.available and fragile.calls == [operation]
    fragile.fault = "out of order"
    assert getattr(guard, operation)(*args) == unknown
    assert not guard.available and [str(error) for error in errors] == ["out of order"]
    reached = fragile.calls.count(operation)
    assert getattr(guard, operation)(*args) == unknown
    assert fragile.calls.count(operation) == reached and len(errors) == 1


def test_it_is_used_again_when_it_is_back(guard, fragile):
    fragile.fault = "away"
    guard.get("k")
    until(lambda: fragile.calls.count("ping") > 2)
    assert not guard.available
    fragile.fault = None
    until(lambda: guard.available)
    assert guard.get("k") == b"there"
    until(lambda: not [thread for thread in threading.enumerate() if thread.name == "store-probe"])


def test_a_purge_is_made_up_for(guard, fragile):
    """Cleared while it is down, a store is not used again before it was cleared."""
    fragile.fault = "away"
    guard.get("k")
    guard.clear()
    assert "clear" not in fragile.calls
    fragile.fault = None
    until(lambda: guard.available)
    assert fragile.calls.count("clear") == 1
    fragile.fault = "away"
    guard.get("k")
    fragile.fault = None
    until(lambda: guard.available)
    assert fragile.calls.count("clear") == 1


def test_it_warns_once_a_minute_and_says_how_much_was_skipped(guard, fragile, now, caplog):
    caplog.set_level(logging.INFO, "llama_api.store")
    fragile.fault = "no route"
    for _ in range(4):
        guard.get("k")
    assert len(caplog.records) == 1
    assert "fake://store" in caplog.text and "no route" in caplog.text and "0 operations" in caplog.text
    seen = len(fragile.calls)
    until(lambda: len(fragile.calls) > seen + 2)
    assert len(caplog.records) == 1
    now[0] += 60
    until(lambda: len(caplog.records) == 2)
    assert "3 operations" in caplog.records[1].message and caplog.records[1].levelno == logging.WARNING
    fragile.fault = None
    until(lambda: guard.available)
    until(lambda: len(caplog.records) == 3)
    assert "is back" in caplog.records[2].message


def test_only_those_already_inside_wait_for_a_failure(guard, fragile, errors):
    """Fifty callers meet a store that hangs: two are inside, the others give up and never reach it."""
    fragile.gate, fragile.fault = threading.Event(), "hung"
    with ThreadPoolExecutor(50) as pool:
        results = [pool.submit(guard.get, "k") for _ in range(50)]
        until(lambda: len(fragile.calls) == 2 and sum(result.done() for result in results) == 48)
        fragile.gate.set()
        assert {result.result() for result in results} == {None}
    assert fragile.calls.count("get") == 2 and len(errors) == 2


def test_one_that_waited_to_get_in_does_not_try_what_just_failed(fragile, monkeypatch):
    monkeypatch.setattr("llama_api.cache.guarded.ADMISSION", LONG)
    fragile.concurrency, fragile.gate, fragile.fault = 1, threading.Event(), "hung"
    guard = GuardedStore(fragile, probe_every=LONG)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(guard.get, "k")
        until(lambda: fragile.calls)
        second = pool.submit(guard.get, "k")
        fragile.gate.set()
        assert first.result() is second.result() is None
    assert fragile.calls == ["get"]
    guard.close()
