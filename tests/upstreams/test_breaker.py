"""The breaker for a hang that no probe can see."""

import threading

import pytest

from llama_api.errors import (ModelNotFound, OllamaBusy, OllamaError, OllamaTimeout, OllamaUnavailable, PromptTooLong,
                              QueueFull)
from llama_api.upstreams.breaker import HANG_TIMEOUTS, RECENT_SECONDS, Breaker
from llama_api.waiting import Cancelled
from tests.support.fakes import Clock, in_threads


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def breaker(clock):
    return Breaker(clock)


def attempt(breaker, error=None):
    """One generation that ends with ``error``, or well."""
    with breaker.admission():
        if error is not None:
            raise error


def fail(breaker, error, times=1):
    for _ in range(times):
        with pytest.raises(type(error)):
            attempt(breaker, error)


def hang(breaker):
    fail(breaker, OllamaTimeout(), HANG_TIMEOUTS)
    assert breaker.open


def test_it_opens_after_timeouts_in_a_row(breaker):
    """One timeout less than the limit lets everybody through, the last one opens it."""
    fail(breaker, OllamaTimeout(), HANG_TIMEOUTS - 1)
    assert not breaker.open
    attempt(breaker)
    fail(breaker, OllamaTimeout(), HANG_TIMEOUTS - 1)
    assert not breaker.open
    fail(breaker, OllamaTimeout())
    assert breaker.open


def test_open_it_lets_one_trial_through_at_a_time(breaker):
    """While a trial is under way all others fail at once with the cure; after it the next may try."""
    hang(breaker)
    assert breaker.admits
    with breaker.admission():
        assert not breaker.admits
        for _ in range(5):
            with pytest.raises(OllamaUnavailable, match="restart Ollama"):
                attempt(breaker)
    assert not breaker.open and breaker.admits
    attempt(breaker)


@pytest.mark.parametrize("error", [OllamaError(), OllamaBusy(), ModelNotFound("x"), PromptTooLong(),
                                   OllamaTimeout(flowing=True)])
def test_any_answer_closes_it(breaker, error):
    """Even an error, or an answer that was flowing when its time was up, shows that Ollama does not hang."""
    hang(breaker)
    fail(breaker, error)
    assert not breaker.open and breaker.reason is None


@pytest.mark.parametrize("error", [OllamaUnavailable(), Cancelled(), QueueFull(64, 1), ValueError("bug")])
def test_what_says_nothing_of_a_hang_changes_nothing(breaker, error):
    """A trial that ends before Ollama answered neither opens nor closes, and gives the trial back."""
    hang(breaker)
    fail(breaker, error, 3)
    assert breaker.open
    attempt(breaker)
    assert not breaker.open
    fail(breaker, error, 10)
    assert not breaker.open and breaker.reason is None


def test_a_trial_that_times_out_leaves_it_open(breaker):
    """The next trial may go at once; there is no time lock."""
    hang(breaker)
    fail(breaker, OllamaTimeout(), 2)
    assert breaker.open and str(HANG_TIMEOUTS + 2) in breaker.reason
    attempt(breaker)
    assert not breaker.open


def test_degraded_for_a_while_after_a_timeout(breaker, clock):
    """One timeout is a reason for a minute, an open breaker for as long as it is open."""
    assert breaker.reason is None
    fail(breaker, OllamaTimeout())
    assert "the last generation timed out" in breaker.reason
    clock.tick(RECENT_SECONDS)
    assert breaker.reason is None
    fail(breaker, OllamaTimeout(), 2)
    clock.tick(100 * RECENT_SECONDS)
    assert breaker.open and breaker.reason


def test_of_many_at_once_one_is_the_trial(breaker):
    """Fifty threads at an open breaker: exactly one gets through."""
    hang(breaker)
    others = threading.Barrier(50)

    def work(number):
        try:
            with breaker.admission():
                others.wait(30)
                return "trial"
        except OllamaUnavailable:
            others.wait(30)
            raise

    outcomes = in_threads(50, work)
    assert outcomes.count("trial") == 1 and sum(isinstance(found, OllamaUnavailable) for found in outcomes) == 49
