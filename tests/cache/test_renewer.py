"""The renewer: claims, leases, uses and purges, all in rounds of one round trip."""

import logging

import pytest

from llama_api.cache import AnswerCache, GuardedStore, Lease, LRUCache, Renewal, Renewer, renewer
from llama_api.cache.epochs import Epochs
from llama_api.cache.store import Claim
from tests.cache import KEYS, LONG, got
from tests.support.fakes import answer, until

CLAIMS = [Claim(key, "epoch-1", f"t-{key}") for key in KEYS[:50]]
LEASE = Lease("host", "t")


class Store:
    """A guarded store that records its calls; ``kept`` is its answer to a renewal."""

    def __init__(self):
        self.available, self.kept, self.rounds, self.touched, self.unleased = True, None, [], [], []
        self.during = lambda: None

    def renew(self, claims, leases, ttl):
        self.during()
        self.rounds.append((list(claims), list(leases), ttl))
        return self.kept

    def touch(self, keys):
        self.touched += keys
        return True

    def lease(self, lease, waited, limit, ttl):
        return lease == LEASE

    def unlease(self, lease):
        self.unleased.append(lease)


@pytest.fixture(autouse=True)
def often(monkeypatch):
    """Rounds that come one after the other."""
    monkeypatch.setattr(renewer, "RENEW_EVERY", 0.01)


@pytest.fixture
def store():
    return Store()


@pytest.fixture
def epochs():
    return Epochs(lambda: None)


@pytest.fixture
def kept_up(store, epochs):
    kept_up = Renewer(store, epochs)
    yield kept_up
    kept_up.stop()


def rounds(store, count=2):
    """Wait for so many whole rounds from now on."""
    seen = len(store.rounds)
    until(lambda: len(store.rounds) > seen + count)


def test_one_round_trip_keeps_up_all(kept_up, store):
    """However many claims and leases there are; what was let go is not kept up any more."""
    for claim in CLAIMS:
        kept_up.hold(claim, lambda wanted: None)
    assert kept_up.lease(LEASE, 0.0, 1) is True
    rounds(store)
    assert store.rounds[-1] == (CLAIMS, [LEASE], renewer.LEASE_SECONDS)
    for claim in CLAIMS[1:]:
        kept_up.drop(claim)
    kept_up.unlease(LEASE)
    rounds(store)
    assert store.rounds[-1] == (CLAIMS[:1], [], renewer.LEASE_SECONDS)
    assert repr(kept_up) == "<Renewer of 1 claims, 0 leases, 0 uses to report>" and store.unleased == [LEASE]


def test_holders_are_told_whether_anybody_waits(kept_up, store):
    """Each of its own claim; nothing is reported while nothing is known, and no waiter while the store is down."""
    told = {claim: [] for claim in CLAIMS[:2]}
    for claim, heard in told.items():
        kept_up.hold(claim, heard.append)
    rounds(store)
    assert list(told.values()) == [[], []]
    store.kept = Renewal("epoch-1", frozenset({CLAIMS[1].token}))
    until(lambda: all(told.values()))
    assert [set(heard) for heard in told.values()] == [{False}, {True}]
    store.kept, store.available = None, False
    until(lambda: told[CLAIMS[1]][-1] is False)


def test_a_lease_that_is_refused_is_not_kept_up(kept_up, store):
    """Neither is one of which nothing is known."""
    assert not kept_up.lease(Lease("host", "other"), 0.0, 1)
    kept_up.start()
    rounds(store)
    assert store.rounds[-1][1] == []


def test_a_lease_given_back_during_a_round_stays_given_back(kept_up, store):
    """The round may have kept it up after that: so it is given back once more."""
    kept_up.lease(LEASE, 0.0, 1)
    store.during = lambda: kept_up.unlease(LEASE) if LEASE not in store.unleased else None
    until(lambda: len(store.unleased) == 2)
    rounds(store)
    assert store.unleased == [LEASE, LEASE]


def test_a_renewer_that_stumbles_goes_on(kept_up, store, caplog, monkeypatch):
    """An unforeseen error is logged, and everything is renewed in the next round."""
    monkeypatch.setattr(logging.getLogger("llama_api"), "propagate", True)
    store.during = lambda: 1 / 0
    kept_up.hold(CLAIMS[0], lambda wanted: None)
    until(lambda: any("renewer" in record.getMessage() for record in caplog.records))
    store.during = lambda: None
    rounds(store)


# On real stores


@pytest.fixture
def open_cache(opened):
    """Start as many processes' caches as wanted, all with the same store."""
    made = []

    def start(max_entries=100, **options):
        made.append(AnswerCache(LRUCache(max_entries, 1 << 20), GuardedStore(opened(max_entries)), **options))
        return made[-1]

    yield start
    for cache in made:
        cache.close()


def test_what_is_served_is_not_evicted_by_what_is_not(open_cache):
    """Answers that only the store has count as well, in a process that has never generated."""
    here, there = open_cache(3), open_cache(3)
    there.get("nothing")
    for key in "abc":
        assert there.set(key, answer(key), there.epoch)
    reported, touch = [], here.store.touch
    here.store.touch = lambda keys: (touch(keys), reported.extend(keys))[0]
    assert here.get("a")
    until(lambda: reported == ["a"])
    there.set("d", answer("d"), there.epoch)
    assert [key for key in "abcd" if got(here.store, key)] == ["a", "c", "d"]


def test_a_purge_elsewhere_is_heard_of_without_a_request(open_cache):
    """The copies of an idle process are emptied, and its flights can be joined no more."""
    purges = []
    here, there = open_cache(), open_cache()
    here.when_purged(lambda: purges.append(1))
    here.watch()
    until(lambda: here.set("key", answer(), here.epoch))
    heard = len(purges)
    there.clear()
    until(lambda: len(here.front) == 0)
    assert len(purges) == heard + 1


def test_claims_live_as_long_as_they_are_held(open_cache, monkeypatch):
    """All of them, although each lives for less than the test takes."""
    monkeypatch.setattr(renewer, "LEASE_SECONDS", 0.5)
    here, there = open_cache(), open_cache()
    claims = [here.store.claim(key, "mine" + key, 0.5) for key in KEYS[:20]]
    for claim in claims:
        here.renewer.hold(claim, lambda wanted: None)
    with pytest.raises(AssertionError):
        until(lambda: there.store.claim(KEYS[0], "yours", LONG) != claims[0], 1.0)
    assert [there.store.claim(key, "yours", LONG) for key in KEYS[:20]] == claims
    here.close()
    until(lambda: there.store.claim(KEYS[0], "yours", LONG).token == "yours")
