"""The guard around a store, with a fake that fails on request."""

import logging
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from llama_api.cache import UNDER_WAY, Claim, Found, GuardedStore, Lease, Renewal, StoreError
from tests.cache import LONG
from tests.support.fakes import Clock, until

CLAIM, LEASE = Claim("k", "epoch-1", "t"), Lease("host", "t")
OPERATIONS = [  # operation, arguments, what a store that is up says
    ("get", ("k",), Found(b"there", "epoch-1")), ("get_many", (["k"],), [Found(b"there", "epoch-1")]),
    ("set", ("k", b"v", "epoch-1"), 3), ("touch", (["k"],), None),
    ("delete", ("k",), None), ("clear", (), "epoch-2"), ("size", (), (1, 300)), ("claim", ("k", "t", 1), CLAIM),
    ("peek", (CLAIM, "f"), UNDER_WAY), ("settle", (CLAIM, b"o", 1), None), ("release", (CLAIM,), None),
    ("renew", ([CLAIM], [LEASE], 1), Renewal("epoch-1", frozenset("t"))), ("lease", (LEASE, 0.0, 1, 1), True),
    ("unlease", (LEASE,), None)]


class Fragile:
    """A store that fails on request and counts the operations that reach it."""

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

    def ping(self):
        self._do("ping")

    def close(self):
        self._do("close")


for _name, _, _result in OPERATIONS:
    setattr(Fragile, _name, lambda self, *args, name=_name, result=_result: self._do(name, result))


@pytest.fixture
def fragile():
    return Fragile()


@pytest.fixture
def errors():
    return []


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def guard(fragile, errors, clock):
    guard = GuardedStore(fragile, errors.append, clock=clock, probe_every=0.01)
    yield guard
    guard.close()


@pytest.mark.parametrize("operation, args, known", OPERATIONS)
def test_a_failure_is_nothing_known(guard, fragile, errors, operation, args, known):
    """Each operation passes through while all is well, and says None when it fails and afterwards."""
    known, unknown = (True, False) if operation == "touch" else (known, None)  # this one reports whether it was done
    assert getattr(guard, operation)(*args) == known
    assert guard.available and fragile.calls == [operation]
    fragile.fault = "out of order"
    assert getattr(guard, operation)(*args) is unknown
    assert not guard.available and [str(error) for error in errors] == ["out of order"]
    reached = fragile.calls.count(operation)
    assert getattr(guard, operation)(*args) is unknown
    assert fragile.calls.count(operation) == reached and len(errors) == 1


def test_it_knows_whether_a_store_counts_leases(guard):
    """Only one of many hosts does; of another nothing is known, and nothing is asked."""
    assert guard.leases

    class OneHost:
        name, concurrency = "fake://store", 1

    alone = GuardedStore(OneHost())
    assert not alone.leases and alone.lease(LEASE, 0.0, 1, 1) is None and alone.unlease(LEASE) is None


def test_it_is_used_again_when_it_is_back(guard, fragile):
    """A thread looks until it is, and ends then."""
    before = set(threading.enumerate())
    fragile.fault = "away"
    guard.get("k")
    until(lambda: fragile.calls.count("ping") > 2)
    assert not guard.available
    fragile.fault = None
    until(lambda: guard.available)
    assert guard.get("k").value == b"there"
    until(lambda: "store-probe" not in {thread.name for thread in set(threading.enumerate()) - before})


def test_a_purge_is_made_up_for(guard, fragile):
    """Cleared while it is down, a store is not used again before it was cleared."""
    fragile.fault = "away"
    guard.get("k")
    assert guard.clear() is None and "clear" not in fragile.calls
    fragile.fault = None
    until(lambda: guard.available)
    assert fragile.calls.count("clear") == 1
    fragile.fault = "away"
    guard.get("k")
    fragile.fault = None
    until(lambda: guard.available)
    assert fragile.calls.count("clear") == 1


def test_it_warns_once_a_minute_and_says_how_much_was_skipped(guard, fragile, clock, caplog):
    """The warning names the store and its error; its recovery is logged, too."""
    caplog.set_level(logging.INFO, "llama_api.store")
    fragile.fault = "no route"
    for _ in range(4):
        guard.get("k")
    assert len(caplog.records) == 1
    assert "fake://store" in caplog.text and "no route" in caplog.text and "0 operations" in caplog.text
    seen = len(fragile.calls)
    until(lambda: len(fragile.calls) > seen + 2)
    assert len(caplog.records) == 1
    clock.tick(60)
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


def test_a_store_that_is_merely_busy_is_not_down(guard, fragile):
    """A caller that finds no place gets no answer, and the store stays in use."""
    fragile.gate = threading.Event()
    with ThreadPoolExecutor(2) as pool:
        inside = [pool.submit(guard.get, "k") for _ in range(2)]
        until(lambda: len(fragile.calls) == 2)
        assert guard.get("k") is None and guard.available
        fragile.gate.set()
        assert [result.result().value for result in inside] == [b"there", b"there"]
    assert fragile.calls == ["get", "get"]


def test_one_that_waited_to_get_in_does_not_try_what_just_failed(fragile, monkeypatch):
    """The first failure is enough for all who wait."""
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
