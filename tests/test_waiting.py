"""The early end of a wait: time limits, cancellation, and one call for all callers of the same."""

import threading
import time

import pytest

from llama_api import waiting
from llama_api.waiting import Cancellation, Cancelled, SingleFlight, Watchdog
from tests.support.fakes import in_threads, until

LONG = 30.0  # seconds that no test takes


# Watchdog


def test_a_time_limit_strikes_once_it_has_passed():
    """The action of a block that takes too long runs once; that of one that ends in time never does."""
    watchdog, struck = Watchdog(), []
    with watchdog.limit(LONG, lambda: struck.append("long")):
        with watchdog.limit(0.01, lambda: struck.append("short")):
            until(lambda: struck)
        time.sleep(3 * waiting.WATCH_TICK)
    assert struck == ["short"]


def test_an_action_that_fails_harms_no_other_limit(caplog):
    """A failing action is logged and the next limit strikes all the same."""
    watchdog, struck = Watchdog(), []

    def fail():
        raise ValueError("in the action")

    logger = waiting.logger
    logger.addHandler(caplog.handler)
    try:
        with watchdog.limit(0.01, fail), watchdog.limit(0.01, lambda: struck.append(1)):
            until(lambda: struck)
    finally:
        logger.removeHandler(caplog.handler)
    with watchdog.limit(0.01, lambda: struck.append(2)):
        until(lambda: len(struck) == 2)
    assert any("action failed" in record.message for record in caplog.records)


def test_one_thread_watches_any_number_of_limits():
    """Hundreds of limits at once cost one thread; each strikes exactly once, and it sleeps when there are none."""
    watchdog, lock, struck = Watchdog(), threading.Lock(), []
    before = threading.active_count()

    def note(number):
        with lock:
            struck.append(number)

    def work(number):
        with watchdog.limit(0.01 if number % 2 else LONG, lambda: note(number)):
            if number % 2:
                until(lambda: number in struck)

    assert in_threads(100, work) == [None] * 100
    assert sorted(struck) == list(range(1, 100, 2))
    until(lambda: threading.active_count() <= before + 1)


def test_a_limit_ends_with_its_block():
    """An error out of the block takes the limit away as well."""
    watchdog, struck = Watchdog(), []
    with pytest.raises(ValueError), watchdog.limit(2 * waiting.WATCH_TICK, lambda: struck.append("late")):
        raise ValueError
    with watchdog.limit(4 * waiting.WATCH_TICK, lambda: struck.append("next")):
        until(lambda: struck)
    assert struck == ["next"]


# Cancellation


def test_a_request_interrupts_the_wait_under_way():
    """The interrupt of the block inside runs on a request, and no more once the block has ended."""
    cancellation, calls = Cancellation(), []
    with cancellation.interrupts(lambda: calls.append(1)):
        cancellation.request()
    cancellation.request()
    assert calls == [1] and cancellation.requested


def test_after_a_request_no_wait_begins():
    """The next block raises Cancelled before its first line."""
    cancellation = Cancellation()
    cancellation.request()
    with pytest.raises(Cancelled), cancellation.interrupts(lambda: None):
        pytest.fail("the wait began")


def test_a_request_at_any_moment_is_never_lost():
    """However a request falls on the begin of a wait, the wait is interrupted or does not begin."""
    for number in range(300):
        cancellation, woken = Cancellation(), threading.Event()

        def wait(_, cancellation=cancellation, woken=woken):
            with cancellation.interrupts(woken.set):
                return woken.wait(LONG)

        def act(which, wait=wait, cancellation=cancellation):
            return wait(which) if which == 0 else cancellation.request()

        outcome, _ = in_threads(2, act)
        assert outcome is True or type(outcome) is Cancelled


def test_a_request_tells_its_reason():
    """The request carries the reason for the readers."""
    cancellation, reason = Cancellation(), ValueError("an operator")
    cancellation.request(reason)
    assert cancellation.reason is reason and Cancellation().reason is None


# SingleFlight


def test_callers_of_one_key_at_one_time_share_one_call():
    """While a call is under way those who come share it and its result; the next caller calls again."""
    shared, calls, go = SingleFlight(), [], threading.Event()

    def slow():
        calls.append(1)
        go.wait(LONG)
        return "the one result"

    def ask(number):
        if number:
            until(lambda: calls)
        if number == 19:
            threading.Timer(0.1, go.set).start()
        return shared.call("key", slow)

    assert in_threads(20, ask) == ["the one result"] * 20 and len(calls) == 1
    assert shared.call("key", lambda: "anew") == "anew"
