"""Leases in a Redis: a count that all hosts share, and an order in which they wait."""

import time

import pytest

from llama_api.cache import Lease, open_store
from tests.cache import KEYS, LONG
from tests.support.fakes import in_threads, until

HOST = "http://a:11434"


@pytest.fixture
def hosts(redis_url):
    """Three views of one Redis, each another host's."""
    stores = [open_store(redis_url, 10, 10_000) for _ in range(3)]
    yield stores
    for store in stores:
        store.close()


@pytest.fixture
def ask(hosts):
    """Ask for a lease, each token from the host that its digit says; whether it was granted."""
    def ask(token, waited=0.0, limit=1, ttl=LONG, name=HOST):
        return hosts[int(token[-1]) % 3].lease(Lease(name, token), waited, limit, ttl)
    return ask


@pytest.fixture
def give_back(hosts):
    return lambda token: hosts[int(token[-1]) % 3].unlease(Lease(HOST, token))


def test_no_more_than_the_limit_are_taken(ask, give_back):
    """Counted over all hosts, for each name apart; one that is given back can be taken again."""
    assert [ask(f"t{n}", limit=2) for n in range(4)] == [True, True, False, False]
    assert ask("t5", name="http://b:11434")
    assert ask("t0", limit=2)  # asking twice does no harm
    give_back("t0")
    assert ask("t2", limit=2) and not ask("t3", limit=2)


def test_in_a_race_exactly_as_many_win_as_there_are(ask):
    """Thirty ask at once for four."""
    assert in_threads(30, lambda number: ask(f"t{number}", limit=4)).count(True) == 4


def test_the_oldest_waiter_goes_first(ask, give_back):
    """The longest waiter is next, on whichever host; the others wait until it has been served."""
    ask("t0")
    for token, waited in (("t1", 1.0), ("t2", 5.0), ("t3", 3.0)):
        assert not ask(token, waited)
    give_back("t0")
    assert [ask(token) for token in ("t1", "t3", "t4")] == [False, False, False]
    assert ask("t2")
    give_back("t2")
    assert not ask("t1") and ask("t3")


def test_several_free_ones_go_to_as_many_of_the_oldest(ask, give_back):
    """Nobody waits for one that is before it to ask, while there are enough for both."""
    ask("t0", limit=2), ask("t1", limit=2)
    for token, waited in (("t2", 3.0), ("t3", 2.0), ("t4", 1.0)):
        assert not ask(token, waited, limit=2)
    give_back("t0"), give_back("t1")
    assert not ask("t4", limit=2) and ask("t3", limit=2) and ask("t2", limit=2)


def test_each_keeps_to_its_own_limit_of_one_count(ask, give_back):
    """A host with two slots and one with four share the taken ones; a waiter at its limit holds up no other."""
    assert ask("t0", limit=2) and ask("t1", limit=4)
    assert not ask("t2", waited=9.0, limit=2)
    assert ask("t3", limit=4) and ask("t4", limit=4)
    assert not ask("t5", limit=4)
    for token in ("t0", "t1", "t3"):
        give_back(token)
    assert not ask("t6", limit=2) and ask("t2", limit=2)


def test_whoever_stops_asking_loses_its_place(fading, ask, give_back):
    """One that died in the queue holds the others up no longer; giving up frees the place at once."""
    ask("t0")
    assert not ask("t1", waited=9.0) and not ask("t2", waited=8.0) and not ask("t3", waited=7.0)
    give_back("t0")
    give_back("t1")
    assert not ask("t3")
    until(lambda: ask("t3"))


def test_a_place_is_kept_from_the_first_asking_on(ask, give_back):
    """The clocks of the hosts do not matter, nor how long each asking takes."""
    ask("t0")
    assert not ask("t1", waited=2.0) and not ask("t2", waited=1.0)
    assert not ask("t2", waited=50.0)
    give_back("t0")
    assert not ask("t2", waited=50.0) and ask("t1")


def test_a_lease_that_is_not_kept_up_ends(hosts, ask):
    """A dead holder's lease expires; a renewed one, in the same round trip as the claims, lasts."""
    held, claim = Lease(HOST, "t0"), hosts[0].claim(KEYS[0], "mine", 1.0)
    assert ask("t0", ttl=1.0)
    end = time.monotonic() + 1.5
    while time.monotonic() < end:
        hosts[0].renew([claim], [held], 1.0)
        assert not ask("t1")
    assert hosts[1].claim(KEYS[0], "yours", LONG) == claim
    until(lambda: ask("t1"))


def test_a_lease_that_lapsed_counts_again_when_it_is_kept_up(hosts, ask):
    """Its generation continued while the store was down: no other may take its place."""
    hosts[0].renew([], [Lease(HOST, "t0"), Lease(HOST, "t1")], LONG)
    assert not ask("t2", limit=2) and ask("t2", limit=3)
