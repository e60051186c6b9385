"""One generation across hosts: two services, each with a cache and a store of its own, on one SQLite file."""

import threading

import orjson
import pytest

from llama_api.answer import Piece
from llama_api.cache import RENEW_EVERY, LEASE_SECONDS, guarded, renewer, open_store, sqlite, sqlite_file
from llama_api.cache.store import UNDER_WAY, WANTED_FOR
from llama_api.core import claims, flights
from llama_api.errors import (GenerationCancelled, ModelNotFound, OllamaBusy, OllamaError, OllamaTimeout,
                              OllamaUnavailable, PromptTooLong, QueueFull, QueueTimeout)
from tests.support.bench import HIT, LONG, MISS, Bench, Watched, label, text_of
from tests.support.fakes import answer, call, in_threads, until

COLLAPSED = ("collapsed", "miss", False, False)
KEY = call().key


class Host(Bench):
    """A service of its own on the shared file."""

    def __init__(self, url, **kwargs):
        self.store = Watched(open_store(url, 100, 1 << 20))
        super().__init__(store=self.store, **kwargs)

    def lead(self, **directives):
        """Begin a generation that waits for ``proceed``: its reply, once it is under way."""
        self.fleet.proceed.clear()
        calls, reply = len(self.fleet.calls), self.begin(**directives)
        until(lambda: len(self.fleet.calls) > calls)
        return reply

    def follow(self, **directives):
        """Ask for what another host generates: the reply, once this host waits for that."""
        looks, reply = self.store.looks, self.begin(**directives)
        until(lambda: self.store.looks > looks)
        return reply

    def idle(self):
        """Wait until nothing is under way, here or in what is shared."""
        return super().idle() and until(lambda: "of 0 claims, 0 leases" in repr(self.cache.renewer))


@pytest.fixture
def url(tmp_path, monkeypatch):
    """A store that is patient on a busy machine, and claims that are kept up more often than usual."""
    for module, name in ((sqlite_file, "BUSY"), (sqlite, "BUDGET"), (sqlite, "SLOW_BUDGET"), (guarded, "ADMISSION"),
                         (guarded, "PATIENCE")):
        monkeypatch.setattr(module, name, LONG)
    monkeypatch.setattr(renewer, "RENEW_EVERY", 0.05)
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
        host.fleet.proceed.set()
    for host in hosts:
        until(lambda: host.flights.count == 0)
        host.cache.close()


@pytest.fixture
def two(open_host):
    return open_host(), open_host()


# One generation


@pytest.mark.parametrize("largest", [claims.LARGEST, 0], ids=["handed over", "found in the store"])
@pytest.mark.parametrize("directives", [{}, {"no_cache": True}, {"max_age": 5}])
def test_a_generation_elsewhere_is_joined(two, monkeypatch, directives, largest):
    """The second host does not call its Ollama; it gets the first one's answer and says that it joined."""
    monkeypatch.setattr(claims, "LARGEST", largest)
    here, there = two
    leader, follower = here.lead(), there.follow(**directives)
    here.fleet.proceed.set()
    assert leader.answer() == follower.answer() and leader.answer().text == "The sky"
    assert label(leader) == MISS and label(follower) == COLLAPSED
    assert len(here.fleet.calls) == 1 and there.fleet.calls == [] and there.fleet.outcomes == []
    assert here.idle() and there.idle()


def test_an_answer_of_several_kinds_is_followed_whole(two):
    """Thinking, tool calls and log-probabilities too."""
    here, there = two
    here.fleet.pieces = [Piece(thinking="Hm."), Piece("The sky", "", ({"function": {"name": "look"}},), ({"x": 1},))]
    leader, follower = here.lead(), there.follow()
    here.fleet.proceed.set()
    assert leader.answer() == follower.answer() and follower.answer().thinking == "Hm."


def test_what_one_generated_is_a_hit_on_the_other(two):
    """After the end it is the store that answers."""
    here, there = two
    assert label(here.ask()[1]) == MISS
    text, reply = there.ask()
    assert (text, label(reply)) == ("The sky", HIT) and there.fleet.calls == []


def test_a_stream_follows_with_the_whole_answer(two):
    """Across hosts the text comes in one piece when it is done, equal to the leader's."""
    here, there = two
    leader, follower = here.lead(), there.follow()
    here.fleet.proceed.set()
    follower.start()
    assert list(follower.events()) == [[Piece("The sky")]] and label(follower) == COLLAPSED
    assert text_of(leader.events()) == "The sky"


def test_a_stream_that_follows_in_silence_says_so(two):
    """The response begins with the first word of the wait, which is before the answer."""
    here, there = two
    leader, follower = here.lead(), there.follow()
    until(lambda: there.store.looks)
    follower.start(0.01)
    assert label(follower) == COLLAPSED
    here.fleet.proceed.set()
    assert leader.answer() == follower.answer() and label(follower) == COLLAPSED


def test_no_store_follows_nobody(two):
    """A bypass is a call of its own, and leaves no claim."""
    here, there = two
    leader = here.lead()
    assert there.ask(no_store=True)[0] == "The sky" and len(there.fleet.calls) == 1
    here.fleet.proceed.set()
    assert leader.answer()


def test_a_storm_over_hosts_is_one_call(two):
    """Forty identical requests over two hosts: one call, one miss, and nothing left over."""
    for host in two:
        host.fleet.proceed.clear()
    ready = threading.Barrier(41)

    def work(number):
        if number == 40:
            ready.wait(LONG)
            until(lambda: sum(host.store.looks > 0 for host in two) == 1)
            return [host.fleet.proceed.set() for host in two]
        reply = two[number % 2].begin()
        ready.wait(LONG)
        try:
            return reply.answer().text, reply.result
        finally:
            reply.close()

    outcomes = in_threads(41, work)[:40]
    assert {text for text, _ in outcomes} == {"The sky"}
    assert sum(len(host.fleet.calls) for host in two) == 1
    assert [result for _, result in outcomes].count("miss") == 1
    assert two[0].idle() and two[1].idle()


def test_different_questions_do_not_wait_for_each_other(two):
    """A claim is on one key."""
    here, there = two
    leader = here.lead()
    assert there.ask(call("Other?"))[0] == "The sky"
    here.fleet.proceed.set()
    assert leader.answer()


@pytest.fixture
def late(two):
    """A host whose first look into the cache comes too early for what the other stores then, and its slow store."""
    here, there = two
    looks, get, settle = [], there.cache.get, there.store.settle

    def late_get(key):
        looks.append(key)
        if len(looks) == 1:
            here.ask()
            return None
        return get(key)

    def slow_settle(*args):
        there.labelled.wait(0.3)
        settle(*args)

    there.labelled, there.cache.get, there.store.settle = threading.Event(), late_get, slow_settle
    return there


def test_an_answer_stored_just_before_is_found(late):
    """Between the look into the cache and the claim the other host has finished: no second call."""
    text, reply = late.ask()
    assert (text, label(reply)) == ("The sky", HIT) and late.fleet.calls == [] and late.idle()


def test_a_stream_of_an_answer_found_late_begins_as_the_hit_that_it_is(late):
    """Its headers are sent with the first piece: by then it is known where that comes from."""
    reply = late.begin()
    reply.start()
    late.labelled.set()
    assert label(reply) == HIT and text_of(reply.events()) == "The sky"
    reply.close()
    assert late.fleet.calls == [] and late.idle()


# A purge


@pytest.mark.parametrize("purging", [0, 1])
def test_a_generation_of_before_a_purge_serves_its_callers_and_no_others(two, purging):
    """Here or elsewhere: it is not stored, and who comes after it, on either host, joins a new one."""
    here, there = two
    before = [here.lead(), there.follow()]
    two[purging].cache.clear()
    after = [here.begin(), there.begin()]
    until(lambda: len(here.fleet.calls) + len(there.fleet.calls) == 2)
    for host in two:
        host.fleet.pieces = ["New"]
        host.fleet.proceed.set()
    assert {reply.answer().text for reply in before} == {"The sky"}
    assert not any(reply.stored for reply in before)
    assert len({reply.answer() for reply in after}) == 1 and sum(reply.stored for reply in after) == 1
    assert here.store.get(KEY).value == after[0].answer().to_bytes()
    assert here.idle() and there.idle()


def test_after_a_purge_nothing_is_left_anywhere(two):
    """Neither in the copies nor in the store, in whatever order the generations finish."""
    here, there = two
    here.ask(call("Other?"))
    leader, follower = here.lead(), there.follow()
    here.cache.clear()
    here.fleet.proceed.set()
    assert leader.answer() == follower.answer()
    assert here.idle() and there.idle() and here.store.size() == there.store.size() == (0, 0)
    until(lambda: len(here.front) == len(there.front) == 0)


# Failure


@pytest.mark.parametrize("error", [
    OllamaError(), OllamaUnavailable(), OllamaBusy(9), OllamaTimeout(), ModelNotFound("llama3:8b"), QueueFull(64, 7),
    PromptTooLong(9, 8, "too long"), QueueTimeout(60.0, 7)], ids=lambda error: type(error).__name__)
def test_a_failure_is_shared_and_not_repeated(two, error):
    """The follower raises the leader's error, with its text and its Retry-After, and makes no call."""
    here, there = two
    here.fleet.pieces, here.fleet.error = [], error
    leader, follower = here.lead(), there.follow()
    here.fleet.proceed.set()
    raised = []
    for reply in (leader, follower):
        with pytest.raises(type(error)) as caught:
            reply.answer()
        raised.append(caught.value)
    assert raised[0] is error and type(raised[1]) is type(error) and raised[1].args == error.args
    assert raised[1].retry_after == error.retry_after and there.fleet.calls == []
    assert here.idle() and there.idle()


def test_after_a_failure_the_next_tries_anew(two):
    """The outcome of a call is for its waiters, not for later requests."""
    here, there = two
    here.fleet.pieces, here.fleet.error = [], OllamaError()
    leader, follower = here.lead(), there.follow()
    here.fleet.proceed.set()
    for reply in (leader, follower):
        with pytest.raises(OllamaError):
            reply.answer()
        reply.close()
    assert label(there.ask()[1]) == MISS


def test_a_fault_of_the_leader_is_not_shared(two):
    """A bug in one process frees the claim: the other generates for itself."""
    here, there = two
    here.fleet.pieces, here.fleet.error = [], ZeroDivisionError("a bug")
    leader, follower = here.lead(), there.follow()
    here.fleet.proceed.set()
    with pytest.raises(ZeroDivisionError):
        leader.answer()
    assert follower.answer().text == "The sky" and label(follower) == MISS and len(there.fleet.calls) == 1


def test_what_an_operator_cancelled_is_cancelled_for_the_readers_elsewhere(two):
    """They get the same error, and do not start it again."""
    here, there = two
    here.fleet.pieces = []
    leader, follower = here.lead(), there.follow()
    assert here.flights.cancel(here.flights.under_way()[0].id)
    for reply in (leader, follower):
        with pytest.raises(GenerationCancelled):
            reply.answer()
    assert there.fleet.calls == [] and here.idle() and there.idle()


@pytest.mark.parametrize("outcome", [
    {"error": "ErrorToCome", "args": []}, {"error": "OllamaTimeout", "args": [1, 2, 3]},
    {"answer": answer().to_json() | {"colour": "blue"}}, {"answer": answer().to_json() | {"format": 99}},
    {"answer": answer().to_json() | {"vector": "YWI="}}, {"answer": answer().to_json(), "answers": 5},
    {"answer": answer().to_json() | {"completion": {"context": [2 ** 40]}}}, {}, [], 5])
def test_an_outcome_that_cannot_be_read_is_a_miss(open_host, outcome):
    """The host generates for itself, and leaves the outcome to those who can read it, such as a newer version."""
    host = open_host()
    claim = host.store.claim(KEY, "newer", LONG)
    assert host.store.peek(claim, "another") == UNDER_WAY
    reply = host.follow()
    host.store.settle(claim, orjson.dumps(outcome), LONG)
    assert reply.answer().text == "The sky" and label(reply) == MISS and len(host.fleet.calls) == 1
    assert host.store.peek(claim, "another") == orjson.dumps(outcome)


# Death


def test_a_dead_holders_claim_is_taken_over(open_host):
    """A claim that is not renewed expires, and a follower generates."""
    host = open_host()
    assert host.store.claim(KEY, "killed", 0.5).token == "killed"
    reply = host.follow()
    assert host.fleet.calls == []
    assert reply.answer().text == "The sky" and label(reply) == MISS and len(host.fleet.calls) == 1


def test_of_many_followers_one_takes_over(open_host):
    """Three hosts follow a dead one; one of them generates and the others follow it."""
    hosts = [open_host() for _ in range(3)]
    assert hosts[0].store.claim(KEY, "killed", 0.5).token == "killed"
    replies = in_threads(12, lambda number: hosts[number % 3].begin())
    assert {reply.answer().text for reply in replies} == {"The sky"}
    assert sum(len(host.fleet.calls) for host in hosts) == 1


def test_a_killed_leader_frees_its_followers_within_five_seconds():
    """The times of the claims add up to what the contract promises."""
    assert LEASE_SECONDS + claims.POLL_SECONDS < 5
    assert RENEW_EVERY * 3 < LEASE_SECONDS


def test_a_living_holder_keeps_its_claim(two, monkeypatch):
    """A generation longer than a claim lives is renewed, and stays the only one."""
    monkeypatch.setattr(claims, "LEASE_SECONDS", 0.5)
    here, there = two
    leader, follower = here.lead(), there.follow()
    looks = there.store.looks
    until(lambda: there.store.looks > looks + 20)
    assert there.fleet.calls == []
    here.fleet.proceed.set()
    assert leader.answer() == follower.answer() and there.fleet.calls == []


# Leaving


def test_an_orphan_is_kept_while_a_follower_wants_it(two):
    """The leader's client leaves; the generation continues for the other host."""
    here, there = two
    leader, follower = here.lead(), there.follow()
    leader.close()
    looks = there.store.looks
    until(lambda: there.store.looks > looks + 10)
    assert here.flights.count == 1
    here.fleet.proceed.set()
    assert follower.answer().text == "The sky" and there.fleet.calls == []
    assert here.fleet.outcomes == ["stop"] and here.idle()


def test_an_orphan_that_nobody_wants_is_cancelled(two):
    """Without a follower the leaving of the last client ends the generation, and its claim."""
    here, there = two
    here.lead().close()
    until(lambda: here.fleet.outcomes == ["cancelled"])
    assert here.idle() and there.ask()[0] == "The sky"


def test_an_orphan_whose_follower_left_too_is_cancelled(two):
    """When the marks of the last follower have expired, the generation ends."""
    here, there = two
    leader, follower = here.lead(), there.follow()
    leader.close()
    follower.close()
    until(lambda: there.flights.count == 0)
    until(lambda: here.fleet.outcomes == ["cancelled"])
    assert here.idle() and there.idle()


def test_the_ticks_add_up_to_the_two_seconds_of_the_contract():
    """The look at the client, the fading of a follower's last mark and the renewer's round, one after the other."""
    assert flights.READER_TICK + WANTED_FOR + RENEW_EVERY <= 2


def test_a_follower_that_leaves_harms_nobody(two):
    """Its own flight ends at once, the leader's continues."""
    here, there = two
    leader, follower = here.lead(), there.follow()
    follower.close()
    until(lambda: there.flights.count == 0)
    here.fleet.proceed.set()
    assert leader.answer().text == "The sky" and here.fleet.outcomes == ["stop"]


def test_an_orphan_is_joined_by_who_comes_back(two):
    """A new client on the leader's host finds the generation that continues for the other one."""
    here, there = two
    leader, follower = here.lead(), there.follow()
    leader.close()
    back = here.begin()
    here.fleet.proceed.set()
    assert back.answer() == follower.answer() and label(back) == COLLAPSED and len(here.fleet.calls) == 1


# The store itself


class Away:
    """A guarded store that is down: it knows nothing and says so."""

    available = False

    def __getattr__(self, name):
        return lambda *args: None


def test_without_the_store_each_host_is_alone():
    """A store that is down costs no request: each host generates, and its own copy serves."""
    hosts = [Bench(store=Away()) for _ in range(2)]
    for host in hosts:
        assert label(host.ask()[1]) == MISS and label(host.ask()[1]) == HIT and len(host.fleet.calls) == 1
        host.cache.close()


def test_a_store_that_is_wiped_midway_costs_no_request(two, tmp_path):
    """The file vanishes under a generation: both hosts have their answer."""
    here, there = two
    leader, follower = here.lead(), there.follow()
    for path in tmp_path.glob("answers.db*"):
        path.unlink()
    here.fleet.proceed.set()
    assert leader.answer().text == "The sky"
    there.fleet.proceed.set()
    assert follower.answer().text == "The sky"
