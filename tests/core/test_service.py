"""The path of a call to its answer: which label, which times, what is stored and what is served in need."""

import threading
import time

import pytest

from llama_api.answer import Piece
from llama_api.api.responder import directives_of
from llama_api.core import Directives
from llama_api.errors import (ClientGone, GenerationCancelled, ModelNotFound, NotCached, OllamaBrokeOff, OllamaBusy,
                              OllamaError, OllamaTimeout, OllamaUnavailable, PromptTooLong, QueueFull, QueueTimeout)
from llama_api.waiting import Wait
from tests.support.bench import BYPASS, HIT, LONG, MISS, REFRESH, SPARE, STALE, Bench, label, text_of
from tests.support.fakes import answer, in_threads, until

FAILURES = [OllamaError(), OllamaUnavailable(), OllamaBusy(), OllamaTimeout(), ModelNotFound("llama3:8b"),
            QueueFull(64, 5), QueueTimeout(60.0, 5)]


@pytest.fixture
def bench():
    return Bench()


# Labels


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
    """The effect of the request's Cache-Control on no entry, a fresh one (TTL 60) and a stale one."""
    bench = Bench(cache_ttl=60.0)
    if age is not None:
        bench.age(age)
    text, reply = bench.ask(streamed=streamed, **directives)
    assert label(reply) == expected
    assert text == ("Old." if expected is HIT else "The sky") and len(bench.fleet.calls) == (expected is not HIT)
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
    assert bench.fleet.calls == [] and bench.flights.count == 0


@pytest.mark.parametrize("header, found", [
    (None, {}), ("", {}), ("no-cache", {"no_cache": True}), ("NO-STORE", {"no_store": True}),
    ("only-if-cached, max-age=60", {"only_if_cached": True, "max_age": 60}), ("max-age=0", {"max_age": 0}),
    (' no-cache , foo="no-store, bar" ,x', {"no_cache": True}), ("x-no-cache", {}), ("no-cachex", {}),
    ("max-age", {}), ("max-age=soon", {}), ('max-age="5"', {"max_age": 5}), ("max-stale=5", {})])
def test_the_header_is_read_by_its_grammar(header, found):
    """Directives are tokens, not substrings; what is unknown or malformed is ignored."""
    assert directives_of(header) == Directives(**found)


def test_a_second_request_is_a_hit(bench):
    """The second request gets the stored answer, streamed or plain, with its age and no first-token time."""
    assert label(bench.ask()[1]) == MISS
    for streamed in (False, True):
        text, reply = bench.ask(streamed=streamed)
        assert (text, label(reply)) == ("The sky", HIT)
        assert reply.timings.queue == 0 and reply.timings.first_token is None and reply.timings.inference < LONG
        assert 0 <= bench.service.age(reply.entry) < LONG
    assert len(bench.fleet.calls) == 1


def test_the_answer_carries_what_ollama_said(bench):
    """Counts, reason, speed, model and digest go into the stored answer."""
    found = bench.begin().answer()
    end = found.completion
    assert (found.text, found.model, end.finish_reason) == ("The sky", "llama3:8b", "stop")
    assert (end.input_tokens, end.output_tokens, end.tokens_per_second) == (17, 2, 50.0)
    assert (found.digest, found.host) == ("build-1", "fake:1") and abs(found.created - time.time()) < LONG


def test_without_a_cache_everything_is_a_bypass():
    """A bound of 0 entries: each request generates, none joins, none is stored."""
    bench = Bench(max_entries=0)
    for _ in range(2):
        assert label(bench.ask()[1]) == BYPASS
    assert len(bench.fleet.calls) == 2
    with pytest.raises(NotCached):
        bench.begin(only_if_cached=True)


# Freshness


def test_an_entry_ages_by_the_ttl():
    """It is fresh below the TTL and stale from it on; the remaining time is reported."""
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
    """After a change of the digest the next request generates again, with the new digest."""
    bench.ask()
    bench.fleet.build, bench.fleet.since = "build-2", time.monotonic()
    assert label(bench.ask()[1]) == STALE and bench.ask(only_if_cached=True)[1].answer().digest == "build-2"
    assert label(bench.ask()[1]) == HIT


# In need


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: type(failure).__name__)
def test_a_stale_answer_is_served_while_ollama_fails(failure, streamed):
    """The entry is served on any failure before the first piece, which is reported."""
    bench = Bench(cache_ttl=60.0)
    bench.age(70)
    bench.fleet.pieces, bench.fleet.error = [], failure
    text, reply = bench.ask(streamed=streamed)
    assert text == "Old." and label(reply) == SPARE and reply.failure is failure
    assert reply.answer().text == "Old." and bench.idle()


@pytest.mark.parametrize("age, env, directives, failure", [
    (None, {}, {}, OllamaTimeout()), (70, {"cache_stale_if_error": 9.0}, {}, OllamaTimeout()),
    (70, {"cache_stale_if_error": 0.0}, {}, OllamaTimeout()), (70, {}, {"no_cache": True}, OllamaTimeout()),
    (70, {}, {"no_store": True}, OllamaTimeout()), (70, {}, {"max_age": 60}, OllamaTimeout()),
    (5, {}, {"max_age": 4}, OllamaTimeout()), (5, {}, {"no_cache": True}, OllamaTimeout()),
    (70, {}, {}, PromptTooLong()), (70, {}, {}, ZeroDivisionError("a bug"))])
def test_what_may_not_stand_in_does_not(age, env, directives, failure):
    """Too old, refused by the request, or a failure that is the caller's or ours: the error goes through."""
    bench = Bench(cache_ttl=60.0, **env)
    if age is not None:
        bench.age(age)
    bench.fleet.pieces, bench.fleet.error = [], failure
    for streamed in (False, True):
        with pytest.raises(type(failure)):
            bench.ask(streamed=streamed, **directives)
    assert bench.idle()


def test_stale_by_a_new_build_counts_from_when_it_was_seen():
    """An entry of another build may be served as long after the change as one past its TTL."""
    bench = Bench(cache_stale_if_error=10.0)
    bench.age(1e6)
    bench.fleet.pieces, bench.fleet.error = [], OllamaUnavailable()
    bench.fleet.build, bench.fleet.since = "build-2", time.monotonic() - 5
    assert bench.ask()[0] == "Old."
    bench.fleet.since = time.monotonic() - 11
    with pytest.raises(OllamaUnavailable):
        bench.ask()


def test_a_plain_request_is_saved_midway_a_stream_is_not():
    """Pieces that were sent cannot be taken back: the stream ends in the error, nothing is stored."""
    bench = Bench(cache_ttl=60.0)
    bench.age(70)
    bench.fleet.error = OllamaBrokeOff()
    assert bench.ask()[0] == "Old."
    reply = bench.begin()
    reply.start()
    events = reply.events()
    assert text_of([next(events)]) in ("The", "The sky")
    with pytest.raises(OllamaBrokeOff):
        list(events)
    reply.close()
    assert bench.idle() and bench.ask(only_if_cached=False)[0] == "Old."


def test_a_stream_that_has_told_of_a_wait_alone_is_saved():
    """Nothing of an answer was sent: the old one comes in place of the failure."""
    bench = Bench(cache_ttl=60.0)
    bench.age(70)
    bench.fleet.pieces, bench.fleet.error = [], OllamaTimeout()
    bench.fleet.proceed.clear()
    reply = bench.begin()
    reply.start(0.01)
    events = reply.events(LONG)
    assert next(events) == Wait()
    bench.fleet.proceed.set()
    assert text_of(events) == "Old." and label(reply) == SPARE and reply.answer().text == "Old."
    reply.close()
    assert bench.idle()


def test_a_failure_is_not_stored(bench):
    """After a failure the next request generates."""
    bench.fleet.error = OllamaError()
    with pytest.raises(OllamaError):
        bench.ask()
    bench.fleet.error = None
    assert label(bench.ask()[1]) == MISS


# What is stored


@pytest.mark.parametrize("reason, stored", [("stop", True), ("length", True), (None, False)])
def test_only_a_known_end_is_stored(bench, reason, stored):
    """stop and length are; an answer that ended otherwise is given, not kept, and counts as an error."""
    bench.fleet.reason = reason
    text, reply = bench.ask()
    assert text == "The sky" and reply.stored is stored and len(bench.front) == stored
    assert bench.fleet.outcomes == [reason or "error"]


def test_a_too_large_answer_is_given_but_not_stored():
    """More than an eighth of the bytes: not kept, and not said to be."""
    bench = Bench(max_bytes=8000)
    bench.fleet.pieces = ["x" * 2000]
    text, reply = bench.ask()
    assert len(text) == 2000 and label(reply) == ("miss", "miss", False, False) and len(bench.front) == 0


def test_an_empty_answer_is_an_answer(bench):
    """The model may say nothing; that is stored and served like any other."""
    bench.fleet.pieces = []
    assert bench.ask(streamed=True)[0] == "" and label(bench.ask()[1]) == HIT and bench.ask(streamed=True)[0] == ""


# Together


@pytest.mark.parametrize("streamed", [False, True])
def test_identical_requests_at_once_are_one_call(bench, streamed):
    """A hundred at once, one call; one missed, the others joined, and none of those says stored."""
    bench.fleet.proceed.clear()
    ready = threading.Barrier(100, action=bench.fleet.proceed.set)

    def work(number):
        reply = bench.begin()
        ready.wait(LONG)
        try:
            if streamed:
                reply.start()
                return text_of(reply.events()), label(reply)
            return reply.answer().text, label(reply)
        finally:
            reply.close()

    outcomes = in_threads(100, work)
    assert sorted(outcomes) == sorted(
        [("The sky", MISS)] + 99 * [("The sky", ("collapsed", "miss", False, False))])
    assert len(bench.fleet.calls) == 1 and bench.idle()


def test_a_failure_is_given_to_all_and_made_once(bench):
    """All callers that joined a failing call get its error, and none calls again."""
    bench.fleet.proceed.clear()
    bench.fleet.error = OllamaError()
    ready = threading.Barrier(30, action=bench.fleet.proceed.set)

    def work(number):
        reply = bench.begin()
        ready.wait(LONG)
        try:
            return reply.answer()
        finally:
            reply.close()

    assert in_threads(30, work) == [bench.fleet.error] * 30
    assert len(bench.fleet.calls) == 1 and bench.idle()


def test_no_cache_joins_and_no_store_does_not(bench):
    """A generation under way is new enough for no-cache; no-store has one of its own."""
    bench.fleet.proceed.clear()
    replies = [bench.begin(), bench.begin(no_cache=True), bench.begin(no_store=True), bench.begin(no_store=True)]
    until(lambda: len(bench.fleet.calls) == 3)
    bench.fleet.proceed.set()
    assert {reply.answer().text for reply in replies} == {"The sky"}
    assert [reply.result for reply in replies] == ["miss", "collapsed", "bypass", "bypass"]
    assert [reply.forwarded for reply in replies] == ["miss", "miss", "bypass", "bypass"]


def test_the_last_client_leaving_cancels(bench):
    """The leader may leave without harm to those who joined; when the last one leaves, the call ends."""
    bench.fleet.proceed.clear()
    leader, joiner = bench.begin(), bench.begin()
    until(lambda: bench.fleet.calls)
    leader.close()
    assert bench.flights.count == 1
    joiner.close()
    until(lambda: bench.flights.count == 0)
    assert bench.fleet.outcomes == ["cancelled"] and bench.idle() and len(bench.front) == 0


def test_a_client_that_is_gone_stops_waiting(bench):
    """The check that comes with the request ends its wait and the generation."""
    bench.fleet.pieces = []
    bench.fleet.proceed.clear()
    gone = threading.Event()
    reply = bench.begin(gone=gone.is_set)
    gone.set()
    with pytest.raises(ClientGone):
        reply.answer()
    reply.close()
    assert bench.idle()


def test_figures_leave_out_what_came_before_one_joined(bench):
    """A late joiner's time is its own wait, and a queue it never stood in is not its."""
    bench.fleet.proceed.clear()
    early = bench.begin()
    until(lambda: bench.fleet.calls)
    time.sleep(0.05)
    late = bench.begin()
    bench.fleet.proceed.set()
    assert early.answer() and late.answer()
    assert early.timings.inference >= 0.05 > early.timings.queue
    assert late.timings.inference <= early.timings.inference - 0.04
    assert late.timings.queue == 0 and late.timings.first_token == 0 <= early.timings.first_token


def test_an_answer_that_came_just_before_is_a_hit(bench):
    """Between the look into the cache and the start of the flight another may have stored it: no call is made."""
    looks, get = [], bench.cache.get

    def late_get(key):
        looks.append(key)
        if len(looks) == 1:
            bench.cache.set(key, answer("Just now."), bench.cache.epoch)
            return None
        return get(key)

    bench.cache.get = late_get
    text, reply = bench.ask(streamed=True)
    assert text == "Just now." and label(reply) == HIT and bench.fleet.calls == []
    assert reply.timings.queue == 0


def test_a_silent_generation_tells_of_the_wait(bench):
    """After each stretch of silence there is a Wait, with what the queue knows; then the pieces come."""
    bench.fleet.pieces = []
    bench.fleet.proceed.clear()
    reply = bench.begin()
    until(lambda: bench.fleet.calls)
    bench.flights.under_way()[0].progress.wait = lambda: Wait(3, 12.0)
    reply.start(0.01)
    assert next(reply.events(LONG)) == Wait(3, 12.0), "what start() has waited for is told at once"
    events = reply.events(0.01)
    assert [next(events), next(events)] == [Wait(3, 12.0)] * 2
    bench.fleet.proceed.set()
    assert text_of(event for event in events if not isinstance(event, Wait)) == ""
    assert label(reply) == MISS


def test_an_operator_ends_a_generation_for_all_its_readers(bench):
    """By the flight's id; its readers get the error, and an unknown id is no flight."""
    bench.fleet.proceed.clear()
    replies = [bench.begin(), bench.begin()]
    until(lambda: bench.fleet.calls)
    assert not bench.flights.cancel("unknown")
    assert bench.flights.cancel(bench.flights.under_way()[0].id)
    for reply in replies:
        with pytest.raises(GenerationCancelled):
            reply.answer()
    assert bench.idle() and bench.fleet.outcomes == ["cancelled"] and len(bench.front) == 0


def test_a_request_after_a_purge_joins_nothing_of_before(bench):
    """Requests before the purge get their answer; requests after it have a new generation."""
    bench.fleet.proceed.clear()
    before = bench.begin()
    until(lambda: bench.fleet.calls)
    bench.service.purge()
    after = bench.begin()
    until(lambda: len(bench.fleet.calls) == 2)
    bench.fleet.proceed.set()
    assert before.answer().text == after.answer().text == "The sky"
    assert (label(before), label(after)) == (("miss", "miss", False, False), MISS)


def test_all_kinds_of_pieces_are_kept_and_replayed(bench):
    """Thinking, text, tool calls and log probabilities are one answer, which a later stream gets too."""
    tool, token = {"function": {"name": "f", "arguments": {}}}, {"token": "a", "logprob": -0.1}
    bench.fleet.pieces = [Piece(thinking="Hm"), Piece("a", logprobs=(token,)), Piece("b", tool_calls=(tool,))]
    first = bench.begin().answer()
    assert (first.thinking, first.text, first.tool_calls, first.logprobs) == ("Hm", "ab", (tool,), (token,))
    reply = bench.begin()
    reply.start()
    assert [piece for pieces in reply.events() for piece in pieces] == first.pieces and label(reply) == HIT
