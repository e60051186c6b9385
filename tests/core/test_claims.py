"""One generation across hosts: two services, each with a cache and a store of its own, on one SQLite file."""

import threading
import time

import pytest

from llama_api.core import flights
from llama_api.core import claims as sharing
from llama_api.cache import sqlite_file
from llama_api.cache import guarded as stores
from llama_api.cache.lru import key_for
from llama_api.upstreams.queue import GateClosed
from llama_api.ollama.protocol import (ModelNotFound, OllamaBusy, OllamaError, OllamaTimeout, OllamaUnavailable,
                                       PromptTooLong)
from llama_api.cache.store import WANTED_FOR
from llama_api.cache.guarded import GuardedStore, open_store
from tests.support.fakes import answer, in_threads, question, until
from tests.core.test_service import HIT, MISS, Bench, label

LONG = 30.0
COLLAPSED = ("collapsed", "miss", False, False)
KEY = key_for(question(), "llama3:8b", None)


class Host(Bench):
    """A service of its own on the shared file."""

    def __init__(self, url, **kwargs):
        self.store = GuardedStore(open_store(url, 100, 1 << 20))
        super().__init__(store=self.store, **kwargs)

    def hold(self):
        """Let generations wait, and no pieces come before they go on."""
        self.client.pieces, self.pieces = [], self.client.pieces
        self.client.proceed.clear()
        return self

    def idle(self):
        return super().idle() and self.service._claims._held == {}


@pytest.fixture
def url(tmp_path, monkeypatch):
    """A store that is patient on a busy machine, and claims that are kept up more often than usual."""
    monkeypatch.setattr(sqlite_file, "BUSY", LONG)
    monkeypatch.setattr(stores, "ADMISSION", LONG)
    monkeypatch.setattr(sharing, "KEEP_EVERY", 0.05)
    return f"sqlite:///{tmp_path}/answers.db"


@pytest.fixture
def open_host(url):
    """Start as many hosts as wanted."""
    hosts = []

    def start(**kwargs):
        hosts.append(Host(url, **kwargs))
        return hosts[-1]

    yield start
    for host in hosts:
        host.client.proceed.set()
        until(lambda: host.flights.count == 0)
        host.store.close()


@pytest.fixture
def two(open_host):
    return open_host(), open_host()


def led_and_followed(here, there, **directives):
    """``here`` generates, ``there`` asks for the same and follows: their replies."""
    here.client.proceed.clear()
    leader = here.begin()
    until(lambda: here.client.calls)
    follower = there.begin(**directives)
    until(lambda: here.store.wanted(KEY, *here.service._claims._held.values()))
    return leader, follower


# One generation


@pytest.mark.parametrize("directives", [{}, {"no_cache": True}, {"max_age": 5}])
def test_a_generation_elsewhere_is_joined(two, directives):
    """The second host does not call its Ollama; it gets the first one's answer and says that it joined."""
    here, there = two
    leader, follower = led_and_followed(here, there, **directives)
    here.client.proceed.set()
    assert leader.answer() == follower.answer() and leader.answer().text == "The sky"
    assert label(leader) == MISS and label(follower) == COLLAPSED
    assert len(here.client.calls) == 1 and there.client.calls == [] and there.observer.outcomes == []
    assert here.idle() and there.idle()


def test_what_one_generated_is_a_hit_on_the_other(two):
    """After the end it is the store that answers."""
    here, there = two
    assert label(here.ask()[1]) == MISS
    text, reply = there.ask()
    assert (text, label(reply)) == ("The sky", HIT) and there.client.calls == []


def test_a_stream_follows_with_the_whole_answer(two):
    """Across hosts the text comes in one piece when it is done, equal to the leader's."""
    here, there = two
    leader, follower = led_and_followed(here, there)
    here.client.proceed.set()
    follower.start()
    assert list(follower.pieces()) == ["The sky"] and label(follower) == COLLAPSED
    assert "".join(leader.pieces()) == "The sky"


def test_no_store_follows_nobody(two):
    """A bypass is a call of its own, and leaves no claim."""
    here, there = two
    here.client.proceed.clear()
    leader = here.begin()
    until(lambda: here.client.calls)
    assert there.ask(no_store=True)[0] == "The sky" and len(there.client.calls) == 1
    here.client.proceed.set()
    assert leader.answer()


def test_a_storm_over_hosts_is_one_call(two):
    """Forty identical requests over two hosts: one call, one miss, and nothing left over."""
    for host in two:
        host.client.proceed.clear()
    ready = threading.Barrier(40)

    def work(number):
        host = two[number % 2]
        ready.wait(LONG)
        reply = host.begin()
        try:
            if reply.result == "miss":
                until(lambda: two[0].client.calls or two[1].client.calls)
                time.sleep(0.1)
                for each in two:
                    each.client.proceed.set()
            return reply.answer().text, reply.result
        finally:
            reply.close()

    outcomes = in_threads(40, work)
    assert {text for text, _ in outcomes} == {"The sky"}
    assert sum(len(host.client.calls) for host in two) == 1
    assert [result for _, result in outcomes].count("miss") == 1
    assert two[0].idle() and two[1].idle()


def test_different_questions_do_not_wait_for_each_other(two):
    """A claim is on one key."""
    here, there = two
    here.client.proceed.clear()
    leader = here.begin()
    until(lambda: here.client.calls)
    assert there.ask(question("Other?"))[0] == "The sky"
    here.client.proceed.set()
    assert leader.answer()


def test_an_answer_stored_just_before_is_found(two):
    """Between the look into the cache and the claim the other host has finished: no second call."""
    here, there = two
    looks, get = [], there.cache.get

    def late_get(key):
        looks.append(key)
        if len(looks) == 1:
            here.ask()
            return None
        return get(key)

    there.cache.get = late_get
    text, reply = there.ask()
    assert (text, label(reply)) == ("The sky", HIT) and there.client.calls == [] and there.idle()


# Failure


@pytest.mark.parametrize("error", [
    OllamaError("broke"), OllamaUnavailable("refused"), OllamaBusy("busy"), OllamaTimeout("late"),
    ModelNotFound("missing"), PromptTooLong("long"), GateClosed("full", 7)], ids=lambda error: type(error).__name__)
def test_a_failure_is_shared_and_not_repeated(two, error):
    """The follower raises what the leader raised, with its text and its Retry-After, and calls nobody."""
    here, there = two
    here.hold().client.error = error
    leader, follower = led_and_followed(here, there)
    here.client.proceed.set()
    raised = []
    for reply in (leader, follower):
        with pytest.raises(type(error)) as caught:
            reply.answer()
        raised.append(caught.value)
    assert raised[0] is error and type(raised[1]) is type(error) and str(raised[1]) == str(error)
    assert raised[1].retry_after == error.retry_after and there.client.calls == []
    assert here.idle() and there.idle()


def test_after_a_failure_the_next_tries_anew(two):
    """What came of a call is for those who waited, not for those who come later."""
    here, there = two
    here.hold().client.error = OllamaError("broke")
    leader, follower = led_and_followed(here, there)
    here.client.proceed.set()
    for reply in (leader, follower):
        with pytest.raises(OllamaError):
            reply.answer()
        reply.close()
    assert label(there.ask()[1]) == MISS


def test_a_fault_of_the_leader_is_not_shared(two):
    """A bug in one process frees the claim: the other generates for itself."""
    here, there = two
    here.hold().client.error = ZeroDivisionError("a bug")
    leader, follower = led_and_followed(here, there)
    here.client.proceed.set()
    with pytest.raises(ZeroDivisionError):
        leader.answer()
    assert follower.answer().text == "The sky" and label(follower) == MISS and len(there.client.calls) == 1


# Death


def test_a_dead_holders_claim_is_taken_over(open_host):
    """A claim that nobody renews expires, and who followed it generates."""
    host = open_host()
    assert host.store.claim(KEY, "killed", 0.5) is None
    reply = host.begin()
    until(lambda: host.store.wanted(KEY, "killed"))
    assert host.client.calls == []
    assert reply.answer().text == "The sky" and label(reply) == MISS and len(host.client.calls) == 1


def test_of_many_followers_one_takes_over(open_host):
    """Three hosts follow a dead one; one of them generates and the others follow it."""
    hosts = [open_host() for _ in range(3)]
    assert hosts[0].store.claim(KEY, "killed", 0.5) is None
    replies = in_threads(12, lambda number: hosts[number % 3].begin())
    assert {reply.answer().text for reply in replies} == {"The sky"}
    assert sum(len(host.client.calls) for host in hosts) == 1


def test_a_killed_leader_frees_its_followers_within_five_seconds():
    """The times of the claims add up to what the contract promises."""
    assert sharing.CLAIM_SECONDS + sharing.POLL_SECONDS < 5
    assert sharing.KEEP_EVERY * 3 < sharing.CLAIM_SECONDS


def test_a_living_holder_keeps_its_claim(two, monkeypatch):
    """A generation longer than a claim lives is renewed, and stays the only one."""
    monkeypatch.setattr(sharing, "CLAIM_SECONDS", 1.0)
    here, there = two
    leader, follower = led_and_followed(here, there)
    time.sleep(1.5)
    assert there.client.calls == []
    here.client.proceed.set()
    assert leader.answer() == follower.answer() and there.client.calls == []


# Leaving


def test_an_orphan_is_kept_while_a_follower_wants_it(two):
    """The leader's client goes away; the generation goes on for the other host."""
    here, there = two
    leader, follower = led_and_followed(here, there)
    leader.close()
    time.sleep(0.3)
    assert here.gate.running == 1
    here.client.proceed.set()
    assert follower.answer().text == "The sky" and there.client.calls == []
    assert here.observer.outcomes == [("stop", 2)] and here.idle()


def test_an_orphan_that_nobody_wants_is_cancelled_within_two_seconds(two):
    """Without a follower the leaving of the last client ends the generation."""
    here, there = two
    here.client.proceed.clear()
    reply = here.begin()
    until(lambda: here.client.calls)
    reply.close()
    until(lambda: here.observer.outcomes == [("cancelled", None)], 2.0)
    assert here.idle() and there.store.peek(KEY, "any") is None
    assert there.ask()[0] == "The sky"


def test_an_orphan_whose_follower_left_too_is_cancelled(two):
    """When the marks of the last follower have faded, the generation ends."""
    here, there = two
    leader, follower = led_and_followed(here, there)
    leader.close()
    follower.close()
    until(lambda: there.flights.count == 0)
    until(lambda: here.observer.outcomes == [("cancelled", None)], WANTED_FOR + 5)
    assert here.idle() and there.idle()


def test_the_ticks_add_up_to_the_two_seconds_of_the_contract():
    """The look at the client, the fading of a follower's last mark and the keeper's round, one after the other."""
    assert flights.READER_TICK + WANTED_FOR + sharing.KEEP_EVERY <= 2


def test_a_follower_that_leaves_harms_nobody(two):
    """Its own flight ends at once, the leader's goes on."""
    here, there = two
    leader, follower = led_and_followed(here, there)
    follower.close()
    until(lambda: there.flights.count == 0)
    here.client.proceed.set()
    assert leader.answer().text == "The sky" and here.observer.outcomes == [("stop", 2)]


def test_an_orphan_is_joined_by_who_comes_back(two):
    """A new client on the leader's host finds the generation that goes on for the other one."""
    here, there = two
    leader, follower = led_and_followed(here, there)
    leader.close()
    back = here.begin()
    here.client.proceed.set()
    assert back.answer() == follower.answer() and label(back) == COLLAPSED and len(here.client.calls) == 1


# The store itself


class Away:
    """A guarded store that is down: it knows nothing and says so."""

    available = False

    def __getattr__(self, name):
        return lambda *args: {"set": 0, "renew": True, "wanted": False}.get(name)


def test_without_the_store_each_host_is_alone():
    """A store that is down costs no request: each host generates, and its own copy serves."""
    hosts = [Bench(store=Away()) for _ in range(2)]
    for host in hosts:
        assert label(host.ask()[1]) == MISS and label(host.ask()[1]) == HIT and len(host.client.calls) == 1


def test_a_keeper_that_stumbles_goes_on(two, caplog):
    """An error nobody thought of is logged, and the claims are kept up all the same."""
    here, _ = two
    here.ask()
    report_use, sharing_log = here.cache.report_use, sharing.logger
    here.cache.report_use = lambda: 1 / 0
    sharing_log.addHandler(caplog.handler)
    try:
        until(lambda: any("keeper" in record.getMessage() for record in caplog.records))
    finally:
        here.cache.report_use = report_use
        sharing_log.removeHandler(caplog.handler)
    here.ask()
    until(lambda: not here.cache._touched)


def test_a_store_that_is_wiped_midway_costs_no_request(two, tmp_path):
    """The file vanishes under a generation: both hosts have their answer."""
    here, there = two
    leader, follower = led_and_followed(here, there)
    for path in tmp_path.glob("answers.db*"):
        path.unlink()
    here.client.proceed.set()
    assert leader.answer().text == follower.answer().text == "The sky"


def test_use_of_the_copies_reaches_the_store(two):
    """What a host serves from its own copy is not evicted from the store as unused."""
    here, there = two
    for number in range(3):
        here.ask(question(f"{number}?"))
    here.ask(question("0?"))
    keys = [key_for(question(f"{number}?"), "llama3:8b", None) for number in range(3)]
    until(lambda: not here.cache._touched)
    small = open_store(there.store.name, 3, 1 << 20)
    until(lambda: small.set("new", answer().to_bytes()) == 1)
    assert [small.get(key) is not None for key in keys] == [True, False, True]
    small.close()
