"""The path of a question to its answer: which label, which times, what is stored and what is served in need."""

import threading
import time

import pytest

from llama_api.cache.lru import TRUST_SECONDS, AnswerCache, Entry, LRUCache, key_for
from llama_api.waiting import Cancelled
from llama_api.core.flights import Flights, ReaderGone
from llama_api.upstreams.queue import Gate, GateClosed
from llama_api.upstreams.monitor import HANG_TIMEOUTS, Breaker
from llama_api.ollama.protocol import (Completion, ModelNotFound, OllamaBusy, OllamaError, OllamaTimeout,
                                       OllamaUnavailable, PromptTooLong)
from llama_api.api.exchange import directives_of
from llama_api.core.service import Directives, NotCached, Service
from llama_api.settings import Settings
from tests.support.fakes import answer, in_threads, question, until

LONG = 30.0
FAILURES = [OllamaError("x"), OllamaUnavailable("x"), OllamaBusy("x"), OllamaTimeout("x"), ModelNotFound("x")]


class Client:
    """An Ollama that writes its pieces, counts its calls, and fails or waits when told."""

    def __init__(self):
        self.calls, self.pieces, self.error, self.reason = [], ["The", " sky"], None, "stop"
        self.proceed = threading.Event()
        self.proceed.set()

    def generate(self, asked, digest, cancellation, publish):
        self.calls.append((asked, digest))
        for piece in self.pieces:
            publish(piece)
        with cancellation.interrupts(self.proceed.set):
            self.proceed.wait(LONG)
        if cancellation.requested:
            raise Cancelled
        if self.error:
            raise self.error
        return Completion(self.reason, 17, 2, 50.0)


class Monitor:
    """Knows the build, and since when."""

    def __init__(self):
        self.build, self.since = "build-1", 0.0

    def digest(self):
        return self.build

    def stale_since(self, digest):
        return None if digest == self.build else self.since


class Observer:
    """Remembers the facts it is told."""

    def __init__(self):
        self.waits = self.runs = 0
        self.outcomes = []

    def waiting(self, change):
        self.waits += change

    def running(self, change):
        self.runs += change

    def generation_ended(self, flight, outcome, completion):
        assert flight.started_at <= flight.slot_at <= flight.landed_at
        self.outcomes.append((outcome, completion and completion.output_tokens))


class Bench:
    """A service with its fakes around it."""

    def __init__(self, slots=4, limit=64, wait_seconds=LONG, max_entries=100, max_bytes=1 << 20, store=None, **env):
        self.settings = Settings(**env)
        self.client, self.monitor, self.observer, self.breaker = Client(), Monitor(), Observer(), Breaker()
        self.front = LRUCache(max_entries, max_bytes)
        self.cache = AnswerCache(self.front, store, self.settings.cache_ttl, self.settings.cache_stale_if_error)
        self.gate, self.flights = Gate(slots, limit, wait_seconds), Flights()
        self.service = Service(self.settings, self.client, self.monitor, self.breaker, self.cache, self.gate,
                               self.flights, self.observer)

    def begin(self, asked=None, gone=lambda: False, **directives):
        return self.service.generate(asked or question(), Directives(**directives), gone)

    def ask(self, asked=None, streamed=False, **directives):
        """The text and the finished reply."""
        reply = self.begin(asked, **directives)
        try:
            if not streamed:
                return reply.answer().text, reply
            reply.start()
            return "".join(reply.pieces()), reply
        finally:
            reply.close()

    def age(self, seconds, asked=None, **changes):
        """Make the stored answer so many seconds old, or put one there that is."""
        key = key_for(asked or question(), self.settings.model, self.settings.num_ctx)
        born = time.monotonic() - seconds
        self.front.set(key, Entry(answer("Old.", **changes), born, born))

    def idle(self):
        """Nothing is under way and nothing is left over."""
        until(lambda: self.flights.count == 0)
        return (self.gate.running, self.gate.waiting, self.observer.waits, self.observer.runs) == (0, 0, 0, 0)


@pytest.fixture
def bench():
    return Bench()


def label(reply):
    return reply.result, reply.forwarded, reply.stored, reply.cached


# Labels

MISS, HIT = ("miss", "miss", True, False), ("hit", None, False, True)
REFRESH, STALE = ("refresh", "request", True, False), ("refresh", "stale", True, False)
BYPASS, SPARE = ("bypass", "bypass", False, False), ("stale", "stale", False, True)


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("age, directives, expected", [
    (None, {}, MISS), (None, {"no_cache": True}, REFRESH), (None, {"no_store": True}, BYPASS),
    (None, {"max_age": 0}, MISS), (None, {"no_store": True, "no_cache": True}, BYPASS),
    (5, {}, HIT), (5, {"no_cache": True}, REFRESH), (5, {"no_store": True}, BYPASS),
    (5, {"max_age": 10}, HIT), (5, {"max_age": 4}, REFRESH), (5, {"max_age": 0}, REFRESH),
    (5, {"only_if_cached": True}, HIT), (5, {"only_if_cached": True, "max_age": 10}, HIT),
    (70, {}, STALE), (70, {"max_age": 100}, STALE), (70, {"max_age": 10}, STALE), (70, {"no_cache": True}, REFRESH),
    (70, {"no_store": True}, BYPASS)])
def test_each_directive_has_its_label(age, directives, expected, streamed):
    """What the request's Cache-Control makes of no entry, a fresh one (TTL 60) and a stale one."""
    bench = Bench(cache_ttl=60.0)
    if age is not None:
        bench.age(age)
    text, reply = bench.ask(streamed=streamed, **directives)
    assert label(reply) == expected
    assert text == ("Old." if expected is HIT else "The sky") and len(bench.client.calls) == (expected is not HIT)
    assert bench.idle() and len(bench.cache.front) == (0 if age is None and expected is BYPASS else 1)


@pytest.mark.parametrize("age, directives", [
    (None, {}), (70, {}), (5, {"max_age": 4}), (5, {"no_cache": True}), (5, {"no_store": True}), (70, {"max_age": 99})])
def test_only_if_cached_never_generates(age, directives):
    """Nothing that may be served, and only-if-cached: NotCached, without a call."""
    bench = Bench(cache_ttl=60.0)
    if age is not None:
        bench.age(age)
    with pytest.raises(NotCached):
        bench.begin(only_if_cached=True, **directives)
    assert bench.client.calls == [] and bench.flights.count == 0


@pytest.mark.parametrize("header, found", [
    (None, {}), ("", {}), ("no-cache", {"no_cache": True}), ("NO-STORE", {"no_store": True}),
    ("only-if-cached, max-age=60", {"only_if_cached": True, "max_age": 60}), ("max-age=0", {"max_age": 0}),
    (' no-cache , foo="no-store, bar" ,x', {"no_cache": True}), ("x-no-cache", {}), ("no-cachex", {}),
    ("max-age", {}), ("max-age=soon", {}), ('max-age="5"', {"max_age": 5}), ("max-stale=5", {})])
def test_the_header_is_read_by_its_grammar(header, found):
    """Directives are tokens, not substrings; what is unknown or malformed is ignored."""
    assert directives_of(header) == Directives(**found)


def test_a_second_request_is_a_hit(bench):
    """What one generated the next gets, streamed or plain, with the entry's age and no first-token time."""
    assert label(bench.ask()[1]) == MISS
    for streamed in (False, True):
        text, reply = bench.ask(streamed=streamed)
        assert (text, label(reply)) == ("The sky", HIT)
        assert reply.figures.queue == 0 and reply.figures.first_token is None and reply.figures.inference < LONG
        assert 0 <= bench.service.age(reply.entry) < LONG
    assert len(bench.client.calls) == 1


def test_the_answer_carries_what_ollama_said(bench):
    """Counts, reason, speed, model and digest go into the stored answer."""
    found = bench.begin().answer()
    assert (found.text, found.model, found.finish_reason) == ("The sky", "llama3:8b", "stop")
    assert (found.input_tokens, found.output_tokens, found.tokens_per_second) == (17, 2, 50.0)
    assert found.digest == "build-1" and abs(found.created - time.time()) < LONG


def test_without_a_cache_everything_is_a_bypass():
    """A bound of 0 entries: each request generates, none joins, none is stored."""
    bench = Bench(max_entries=0)
    for _ in range(2):
        assert label(bench.ask()[1]) == BYPASS
    assert len(bench.client.calls) == 2
    with pytest.raises(NotCached):
        bench.begin(only_if_cached=True)


# Freshness


def test_an_entry_ages_by_the_ttl():
    """Fresh below the TTL, stale from it on; what is left is told."""
    bench = Bench(cache_ttl=60.0)
    bench.age(59)
    _, reply = bench.ask()
    assert label(reply) == HIT and 0 < bench.service.ttl(reply.entry) <= 1
    bench.age(60)
    assert label(bench.ask()[1]) == STALE
    assert label(bench.ask()[1]) == HIT


def test_without_a_ttl_nothing_ages(bench):
    """A TTL of 0 keeps an entry fresh until it is evicted."""
    bench.age(1e6)
    _, reply = bench.ask()
    assert label(reply) == HIT and bench.service.ttl(reply.entry) is None


def test_another_build_of_the_model_makes_an_entry_stale(bench):
    """After a change of the digest the next request generates anew, with the new digest."""
    bench.ask()
    bench.monitor.build, bench.monitor.since = "build-2", time.monotonic()
    assert label(bench.ask()[1]) == STALE and bench.client.calls[-1][1] == "build-2"
    assert label(bench.ask()[1]) == HIT


# In need


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: type(failure).__name__)
def test_a_stale_answer_is_served_while_ollama_fails(failure, streamed):
    """The entry stands in for any failure before the first piece, and tells which."""
    bench = Bench(cache_ttl=60.0)
    bench.age(70)
    bench.client.pieces, bench.client.error = [], failure
    text, reply = bench.ask(streamed=streamed)
    assert text == "Old." and label(reply) == SPARE and reply.failure is failure
    assert reply.answer().text == "Old." and bench.idle()


def test_a_stale_answer_is_served_while_the_queue_is_full():
    """No slot and no room: better the old answer than none."""
    bench = Bench(slots=1, limit=0, cache_ttl=60.0)
    bench.age(70)
    bench.client.proceed.clear()
    busy = bench.begin(question("Other?"))
    until(lambda: bench.client.calls)
    text, reply = bench.ask()
    assert text == "Old." and type(reply.failure) is GateClosed
    bench.client.proceed.set()
    assert busy.answer().text == "The sky"


@pytest.mark.parametrize("age, env, directives, failure", [
    (None, {}, {}, OllamaTimeout("x")), (70, {"cache_stale_if_error": 9.0}, {}, OllamaTimeout("x")),
    (70, {"cache_stale_if_error": 0.0}, {}, OllamaTimeout("x")), (70, {}, {"no_cache": True}, OllamaTimeout("x")),
    (70, {}, {"no_store": True}, OllamaTimeout("x")), (70, {}, {"max_age": 60}, OllamaTimeout("x")),
    (5, {}, {"max_age": 4}, OllamaTimeout("x")), (5, {}, {"no_cache": True}, OllamaTimeout("x")),
    (70, {}, {}, PromptTooLong("x")), (70, {}, {}, ZeroDivisionError("a bug"))])
def test_what_may_not_stand_in_does_not(age, env, directives, failure):
    """Too old, refused by the request, or a failure that is the caller's or ours: the error goes through."""
    bench = Bench(cache_ttl=60.0, **env)
    if age is not None:
        bench.age(age)
    bench.client.pieces, bench.client.error = [], failure
    for streamed in (False, True):
        with pytest.raises(type(failure)):
            bench.ask(streamed=streamed, **directives)
    assert bench.idle()


def test_stale_by_a_new_build_counts_from_when_it_was_seen():
    """An entry of another build stands in for as long after the change as one past its TTL."""
    bench = Bench(cache_stale_if_error=10.0)
    bench.age(1e6)
    bench.client.pieces, bench.client.error = [], OllamaUnavailable("x")
    bench.monitor.build, bench.monitor.since = "build-2", time.monotonic() - 5
    assert bench.ask()[0] == "Old."
    bench.monitor.since = time.monotonic() - 11
    with pytest.raises(OllamaUnavailable):
        bench.ask()


def test_a_plain_request_is_saved_midway_a_stream_is_not():
    """Pieces that were sent cannot be taken back: the stream ends in the error, nothing is stored."""
    bench = Bench(cache_ttl=60.0)
    bench.age(70)
    bench.client.error = OllamaError("broke off")
    assert bench.ask()[0] == "Old."
    reply = bench.begin()
    reply.start()
    pieces = reply.pieces()
    assert [next(pieces), next(pieces)] == ["The", " sky"]
    with pytest.raises(OllamaError):
        next(pieces)
    reply.close()
    assert bench.idle() and bench.ask(only_if_cached=False)[0] == "Old."


def test_a_failure_is_not_stored(bench):
    """After a failure the next request generates."""
    bench.client.error = OllamaError("x")
    with pytest.raises(OllamaError):
        bench.ask()
    bench.client.error = None
    assert label(bench.ask()[1]) == MISS


def test_the_breaker_guards_the_generations(bench):
    """After timeouts in a row a trial is let through, a second request beside it is not."""
    bench.client.error = OllamaTimeout("late")
    for number in range(HANG_TIMEOUTS):
        with pytest.raises(OllamaTimeout):
            bench.ask(question(f"{number}?"))
    bench.client.error = None
    bench.client.proceed.clear()
    calls = len(bench.client.calls)
    trial = bench.begin()
    until(lambda: len(bench.client.calls) > calls)
    with pytest.raises(OllamaUnavailable, match="timed out"):
        bench.ask(question("Other?"))
    bench.client.proceed.set()
    assert trial.answer().text == "The sky" and not bench.breaker.open


# What is stored


@pytest.mark.parametrize("reason, stored", [("stop", True), ("length", True), (None, False)])
def test_only_a_known_end_is_stored(bench, reason, stored):
    """stop and length are; an answer that ended otherwise is given, not kept, and counts as an error."""
    bench.client.reason = reason
    text, reply = bench.ask()
    assert text == "The sky" and reply.stored is stored and len(bench.front) == stored
    assert bench.observer.outcomes == [(reason or "error", 2)]


def test_a_too_large_answer_is_given_but_not_stored():
    """More than an eighth of the bytes: not kept, and not said to be."""
    bench = Bench(max_bytes=8000)
    bench.client.pieces = ["x" * 2000]
    text, reply = bench.ask()
    assert len(text) == 2000 and label(reply) == ("miss", "miss", False, False) and len(bench.front) == 0


def test_an_empty_answer_is_an_answer(bench):
    """The model may say nothing; that is stored and served like any other."""
    bench.client.pieces = []
    assert bench.ask(streamed=True)[0] == "" and label(bench.ask()[1]) == HIT and bench.ask(streamed=True)[0] == ""


# Together


@pytest.mark.parametrize("streamed", [False, True])
def test_identical_requests_at_once_are_one_call(bench, streamed):
    """A hundred at once, one call; one missed, the others joined, and none of those says stored."""
    bench.client.proceed.clear()
    ready = threading.Barrier(100, action=bench.client.proceed.set)

    def work(number):
        reply = bench.begin()
        ready.wait(LONG)
        try:
            if streamed:
                reply.start()
                return "".join(reply.pieces()), label(reply)
            return reply.answer().text, label(reply)
        finally:
            reply.close()

    outcomes = in_threads(100, work)
    assert sorted(outcomes) == sorted(
        [("The sky", MISS)] + 99 * [("The sky", ("collapsed", "miss", False, False))])
    assert len(bench.client.calls) == 1 and bench.idle()


def test_a_failure_is_given_to_all_and_made_once(bench):
    """Those who joined a failing call all get its error, and nobody calls again."""
    bench.client.proceed.clear()
    bench.client.error = OllamaError("x")
    ready = threading.Barrier(30, action=bench.client.proceed.set)

    def work(number):
        reply = bench.begin()
        ready.wait(LONG)
        try:
            return reply.answer()
        finally:
            reply.close()

    assert in_threads(30, work) == [bench.client.error] * 30
    assert len(bench.client.calls) == 1 and bench.idle()


def test_no_cache_joins_and_no_store_does_not(bench):
    """A generation under way is new enough for no-cache; no-store has one of its own."""
    bench.client.proceed.clear()
    replies = [bench.begin(), bench.begin(no_cache=True), bench.begin(no_store=True), bench.begin(no_store=True)]
    until(lambda: len(bench.client.calls) == 3)
    bench.client.proceed.set()
    assert {reply.answer().text for reply in replies} == {"The sky"}
    assert [reply.result for reply in replies] == ["miss", "collapsed", "bypass", "bypass"]
    assert [reply.forwarded for reply in replies] == ["miss", "miss", "bypass", "bypass"]


def test_one_waits_for_a_slot_not_for_another_key():
    """With one slot, others queue; what is in the cache does not wait."""
    bench = Bench(slots=1)
    bench.ask(question("Known?"))
    bench.client.proceed.clear()
    first = bench.begin(question("First?"))
    until(lambda: len(bench.client.calls) == 2)
    second = bench.begin(question("Second?"))
    until(lambda: (bench.gate.waiting, bench.observer.waits, bench.observer.runs) == (1, 1, 1))
    assert label(bench.ask(question("Known?"))[1]) == HIT
    bench.client.proceed.set()
    assert first.answer() and second.answer()
    assert second.figures.queue > 0 and bench.idle()


def test_the_last_client_leaving_cancels(bench):
    """A leader's leaving does not harm those who joined; when nobody is left the call ends."""
    bench.client.proceed.clear()
    leader, joiner = bench.begin(), bench.begin()
    until(lambda: bench.client.calls)
    leader.close()
    assert bench.gate.running == 1
    joiner.close()
    until(lambda: bench.flights.count == 0)
    assert bench.observer.outcomes == [("cancelled", None)] and bench.idle() and len(bench.front) == 0


def test_a_client_that_is_gone_stops_waiting(bench):
    """The check that comes with the request ends its wait and the generation."""
    bench.client.pieces = []
    bench.client.proceed.clear()
    gone = threading.Event()
    reply = bench.begin(gone=gone.is_set)
    gone.set()
    with pytest.raises(ReaderGone):
        reply.answer()
    reply.close()
    assert bench.idle()


def test_a_cancelled_wait_for_a_slot_is_no_generation():
    """Leaving the queue is told as one waiter less and nothing else."""
    bench = Bench(slots=1)
    bench.client.proceed.clear()
    first = bench.begin(question("First?"))
    until(lambda: bench.client.calls)
    second = bench.begin(question("Second?"))
    until(lambda: bench.gate.waiting == 1)
    second.close()
    until(lambda: bench.observer.waits == 0)
    bench.client.proceed.set()
    assert first.answer() and len(bench.client.calls) == 1
    first.close()
    assert bench.idle() and len(bench.observer.outcomes) == 1


def test_figures_leave_out_what_came_before_one_joined(bench):
    """A late joiner's time is its own wait, and a queue it never stood in is not its."""
    bench.client.proceed.clear()
    early = bench.begin()
    until(lambda: bench.client.calls)
    time.sleep(0.05)
    late = bench.begin()
    bench.client.proceed.set()
    assert early.answer() and late.answer()
    assert early.figures.inference >= 0.05 > early.figures.queue
    assert late.figures.inference <= early.figures.inference - 0.04
    assert late.figures.queue == 0 and late.figures.first_token == 0 <= early.figures.first_token


def test_an_answer_that_came_just_before_is_a_hit(bench):
    """Between the look into the cache and the start of the flight another may have stored it: no call is made."""
    looks, get = [], bench.cache.get

    def late_get(key):
        looks.append(key)
        if len(looks) == 1:
            bench.cache.set(key, answer("Just now."))
            return None
        return get(key)

    bench.cache.get = late_get
    text, reply = bench.ask(streamed=True)
    assert text == "Just now." and label(reply) == HIT and bench.client.calls == []
    assert reply.figures.queue == 0


def test_the_observer_hears_each_generation_once():
    """Outcomes are stop, length, error and cancelled; waits and runs end even."""
    bench = Bench()
    for reason, error in (("stop", None), ("length", None), ("stop", OllamaError("x"))):
        bench.client.reason, bench.client.error = reason, error
        try:
            bench.ask(no_store=True)
        except OllamaError:
            pass
    assert bench.observer.outcomes == [("stop", 2), ("length", 2), ("error", None)] and bench.idle()


# The answers' cache


class Store:
    """A shared store in a dict, which can be away."""

    def __init__(self):
        self.values, self.available, self.touched = {}, True, []

    def get(self, key):
        return self.values.get(key) if self.available else None

    def set(self, key, value):
        self.values[key] = value
        return 1

    def delete(self, key):
        self.values.pop(key, None)

    def clear(self):
        self.values.clear()

    def size(self):
        return (len(self.values), 99) if self.available else None

    def touch(self, keys):
        self.touched += keys


class Two:
    """Two workers' caches on one store, with clocks that tick together."""

    def __init__(self, **kwargs):
        self.now, self.store = [1000.0], Store()
        self.caches = [AnswerCache(LRUCache(10, 1 << 20, clock=self.clock), self.store, clock=self.clock,
                                   wall_clock=lambda: self.now[0] + 1e9, **kwargs) for _ in range(2)]

    def clock(self):
        return self.now[0]

    def new(self, text):
        return answer(text, created=self.now[0] + 1e9)


def test_an_answer_of_one_worker_is_the_others_too():
    """It comes out of the store with its age."""
    two = Two()
    here, there = two.caches
    assert here.set("key", two.new("A."))
    two.now[0] += 30
    entry = there.get("key")
    assert entry.answer.text == "A." and entry.born == 1000.0 and there.get("other") is None
    assert here.size() == (1, 99) and here.evictions == 1


@pytest.mark.parametrize("act, text", [
    (lambda cache, two: cache.clear(), None), (lambda cache, two: cache.set("key", two.new("B.")), "B.")])
def test_a_purge_or_a_renewal_is_everywhere_after_a_second(act, text):
    """The in-process copy is trusted for a second, then the store is asked again."""
    two = Two()
    here, there = two.caches
    here.set("key", two.new("A."))
    assert there.get("key").answer.text == "A."
    act(here, two)
    two.now[0] += TRUST_SECONDS - 0.01
    assert there.get("key").answer.text == "A."
    two.now[0] += 0.01
    found = there.get("key")
    assert (found and found.answer.text) == text


def test_without_the_store_the_copy_goes_on():
    """A store that is away costs no entry of this process."""
    two = Two()
    here, there = two.caches
    here.set("key", two.new("A."))
    two.store.available = False
    two.now[0] += 100
    assert here.get("key").answer.text == "A." and there.get("key") is None
    assert here.size() == (1, here.front.bytes)


@pytest.mark.parametrize("garbage", [b"", b"x", b"[]", b"5", b"null", b'{"text": "x"}', b'{"a": 1}', b"\x80\x04K\x05.",
                                     b'"\xff"'])
def test_garbage_in_the_store_is_a_miss_and_is_removed(garbage):
    """What is no answer is never served, and not asked for again."""
    two = Two()
    two.store.values["key"] = garbage
    assert two.caches[0].get("key") is None and two.store.values == {}


def test_an_answer_past_all_use_is_not_taken_from_the_store():
    """With a TTL, an answer older than TTL and stale time together is none; one younger keeps its age."""
    two = Two(ttl=60, stale_seconds=40)
    here, there = two.caches
    here.set("key", two.new("A."))
    two.now[0] += 99
    assert there.get("key").answer.text == "A."
    two.now[0] += 1
    assert there.get("key") is None


def test_what_the_copy_served_counts_as_use_in_the_store():
    """Keys served from the copy are reported once, so that both evict by the same use."""
    two = Two()
    here = two.caches[0]
    here.set("a", two.new("A."))
    here.set("b", two.new("B."))
    for _ in range(3):
        here.get("a")
    here.report_use()
    here.report_use()
    assert two.store.touched == ["a"]
