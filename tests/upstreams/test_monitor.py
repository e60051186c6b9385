"""What is known of Ollama: the monitor's probe and digest, and the breaker for a hang that no probe can see."""

import threading
import time

import pytest

from llama_api.upstreams import monitor as health
from llama_api.waiting import Cancelled
from llama_api.upstreams.queue import GateClosed
from llama_api.upstreams.monitor import HANG_TIMEOUTS, RECENT_SECONDS, Breaker, Monitor
from llama_api.ollama.protocol import (ModelNotFound, OllamaBusy, OllamaError, OllamaTimeout, OllamaUnavailable,
                                       PromptTooLong)
from tests.support.fakes import Clock, in_threads, until


class Client:
    """An Ollama with one model, whose calls are counted and may fail."""

    def __init__(self, name="llama3:8b", digest="build-1"):
        self.models, self.error, self.version_error = [{"name": name, "digest": digest}], None, None
        self.probes, self.delay = 0, 0.0

    def inventory(self, seconds):
        self.probes += 1
        time.sleep(min(self.delay, seconds))
        if self.error:
            raise self.error
        return self.models

    def version(self, seconds):
        assert 0 < seconds < 1
        if self.version_error:
            raise self.version_error
        return "0.33.0"


@pytest.fixture
def client():
    return Client()


@pytest.fixture
def monitor(client):
    return Monitor(client, "llama3:8b", Clock())


@pytest.fixture
def fast(monkeypatch):
    """Probe fifty times as often."""
    monkeypatch.setattr(health, "PROBE_EVERY", 0.02)


# The probe


def test_all_is_well(monitor):
    """Reachable, with version, model and digest, and no reason to complain."""
    probe = monitor.probe()
    assert (probe.reachable, probe.version, probe.model_present, probe.digest, probe.reason) == (
        True, "0.33.0", True, "build-1", None)


@pytest.mark.parametrize("error, words", [
    (OllamaUnavailable("Start it with `ollama serve`."), "ollama serve"), (OllamaTimeout("late"), "restart"),
    (OllamaError("Not its protocol."), "protocol"), (OllamaBusy("Busy."), "Busy")])
def test_an_ollama_that_cannot_be_asked_is_not_reachable(monitor, client, error, words):
    """Whatever keeps the list of models from coming is the reason."""
    client.error = error
    probe = monitor.probe()
    assert not probe.reachable and not probe.model_present and words in probe.reason


def test_a_missing_model_says_how_to_get_it(monitor, client):
    """Ollama is there, the model is not: the reason is the line to run."""
    client.models = [{"name": "llama3:latest", "digest": "x"}]
    probe = monitor.probe()
    assert probe.reachable and not probe.model_present and "ollama pull llama3:8b" in probe.reason


def test_a_missing_version_is_no_trouble(monitor, client):
    """The version is a courtesy; without it all is well."""
    client.version_error = OllamaTimeout("late")
    assert monitor.probe().version is None and monitor.probe().reason is None


@pytest.mark.parametrize("configured, listed, same", [
    ("llama3", "llama3:latest", True), ("llama3:latest", "llama3", True), ("LLaMA3:8B", "llama3:8b", True),
    ("library/llama3:8b", "llama3:8b", True), ("llama3:8b", "registry.ollama.ai/library/llama3:8b", True),
    ("me/llama3", "me/llama3:latest", True), ("host:5000/me/llama3", "host:5000/me/llama3:latest", True),
    ("llama3:8b", "llama3:latest", False), ("llama3", "llama3.1:latest", False), ("llama3", "me/llama3:latest", False)])
def test_models_are_compared_as_ollama_does(configured, listed, same):
    """Case, the default tag, namespace and registry do not matter; all else does."""
    assert Monitor(Client(listed), configured, Clock()).probe().model_present is same


@pytest.mark.parametrize("models", [[], [{}], [{"name": None}], [{"name": 5, "digest": "x"}]])
def test_a_list_of_anything_is_survived(monitor, client, models):
    """Entries without a name are no model."""
    client.models = models
    assert monitor.probe().reachable and not monitor.probe().model_present


def test_a_model_without_a_digest_is_present(monitor, client):
    """An older Ollama without digests is served all the same."""
    client.models = [{"name": "llama3:8b"}]
    probe = monitor.probe()
    assert probe.model_present and probe.digest is None and probe.reason is None


# The digest


def test_the_digest_is_remembered_through_an_outage(monitor, client):
    """What was last seen stands while Ollama is down or the model is missing."""
    monitor.probe()
    client.error = OllamaUnavailable("down")
    monitor.probe()
    assert monitor.digest() == "build-1" and monitor.stale_since("build-1") is None
    client.error, client.models = None, []
    monitor.probe()
    assert monitor.digest() == "build-1"


def test_another_build_is_stale_since_it_was_first_seen(monitor, client):
    """The time of the change is that of the first probe that saw it."""
    clock = monitor._clock
    monitor.probe()
    assert monitor.stale_since("build-1") is None
    clock.tick(100)
    client.models[0]["digest"] = "build-2"
    monitor.probe()
    seen = clock()
    clock.tick(5)
    monitor.probe()
    assert monitor.stale_since("build-1") == monitor.stale_since(None) == seen
    assert monitor.stale_since("build-2") is None


def test_before_any_digest_nothing_is_stale(client):
    """An Ollama that was never seen makes no entry old."""
    client.error = OllamaUnavailable("down")
    monitor = Monitor(client, "llama3:8b", Clock())
    monitor.probe()
    assert monitor.digest() is None and monitor.stale_since("build-1") is None


# The thread


def test_callers_share_one_probe(client):
    """Fifty callers at once wait for the same first probe."""
    client.delay = 0.05
    monitor = Monitor(client, "llama3:8b")
    probes = in_threads(50, lambda _: monitor.latest())
    assert all(probe.reachable for probe in probes) and client.probes == 1


def test_a_probe_is_never_older_than_two_seconds(client, monkeypatch):
    """With the real times, over three rounds: what is told is fresh at every moment."""
    monitor, ages = Monitor(client, "llama3:8b"), []
    end = time.monotonic() + 2.5
    while time.monotonic() < end:
        ages.append(time.monotonic() - monitor.latest().at)
        time.sleep(0.02)
    assert max(ages) <= 2.0 and client.probes >= 2


def test_a_caller_is_told_in_time_though_ollama_hangs(client):
    """The first caller of all gets an answer, not a wait for ever."""
    release = threading.Event()
    client.inventory = lambda seconds: release.wait(30)
    began = time.monotonic()
    probe = Monitor(client, "llama3:8b").latest()
    assert time.monotonic() - began >= health.FIRST_PROBE_SECONDS
    assert not probe.reachable and "not answered yet" in probe.reason
    release.set()


def test_nobody_asking_leaves_ollama_in_peace(client, fast, monkeypatch):
    """After a while unasked the probes end; the next caller waits for a fresh one."""
    monkeypatch.setattr(health, "IDLE_SECONDS", 0.05)
    monitor = Monitor(client, "llama3:8b")
    monitor.latest()
    until(lambda: not monitor._wanted.is_set())
    probes = client.probes
    time.sleep(0.15)
    assert client.probes == probes
    client.error = OllamaUnavailable("down")
    assert not monitor.latest().reachable and client.probes > probes


def test_one_thread_probes(client, fast, monkeypatch):
    """However often it falls idle and is woken, there is one thread."""
    monkeypatch.setattr(health, "IDLE_SECONDS", 0.01)
    monitor = Monitor(client, "llama3:8b")
    before = threading.active_count()
    for _ in range(3):
        monitor.latest()
        until(lambda: not monitor._wanted.is_set())
    assert threading.active_count() <= before + 1


def test_a_probe_that_crashes_is_not_the_last(client, fast, caplog):
    """An error nobody thought of is logged and the probes go on."""
    health.logger.addHandler(caplog.handler)
    client.error = ZeroDivisionError("a bug")
    monitor = Monitor(client, "llama3:8b")
    try:
        monitor.latest()
        client.error = None
        until(lambda: monitor.latest().reachable)
    finally:
        health.logger.removeHandler(caplog.handler)
    assert any("the probe failed" in record.getMessage() for record in caplog.records)


def test_a_change_is_logged_once(monitor, client, caplog):
    """Up and down are one line each, not one a probe."""
    caplog.set_level("INFO", logger="llama_api.upstreams.monitor")
    health.logger.addHandler(caplog.handler)
    try:
        for error in (None, None, OllamaUnavailable("down"), OllamaUnavailable("down"), None):
            client.error = error
            monitor.probe()
    finally:
        health.logger.removeHandler(caplog.handler)
    seen = list(dict.fromkeys((record.created, record.getMessage()) for record in caplog.records))
    assert [message for _, message in seen] == ["Ollama: ready", "Ollama: down", "Ollama: ready"]


# The breaker


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def breaker(clock):
    return Breaker(clock)


def attempt(breaker, error=None):
    """One generation that ends with ``error``, or well."""
    with breaker.admission() as admit:
        admit()
        if error is not None:
            raise error


def fail(breaker, error, times=1):
    for _ in range(times):
        with pytest.raises(type(error)):
            attempt(breaker, error)


def hang(breaker):
    fail(breaker, OllamaTimeout("late"), HANG_TIMEOUTS)
    assert breaker.open


def test_it_opens_after_timeouts_in_a_row(breaker):
    """One timeout less than the limit lets everybody through, the last one opens it."""
    fail(breaker, OllamaTimeout("late"), HANG_TIMEOUTS - 1)
    assert not breaker.open
    attempt(breaker)
    fail(breaker, OllamaTimeout("late"), HANG_TIMEOUTS - 1)
    assert not breaker.open
    fail(breaker, OllamaTimeout("late"))
    assert breaker.open


def test_open_it_lets_one_trial_through_at_a_time(breaker):
    """While a trial is under way all others fail at once with the cure; after it the next may try."""
    hang(breaker)
    with breaker.admission() as admit:
        admit()
        for _ in range(5):
            with pytest.raises(OllamaUnavailable, match="restart Ollama"):
                attempt(breaker)
        admit()
    assert not breaker.open
    attempt(breaker)


def test_those_who_queued_before_it_opened_are_turned_away(breaker):
    """The second look, after the wait for a slot, counts as well."""
    with breaker.admission() as early:
        hang(breaker)
        with breaker.admission():
            with pytest.raises(OllamaUnavailable):
                early()


@pytest.mark.parametrize("error", [OllamaError("500"), OllamaBusy("503"), ModelNotFound("404"), PromptTooLong("400")])
def test_any_answer_closes_it(breaker, error):
    """Even an error shows that Ollama does not hang."""
    hang(breaker)
    fail(breaker, error)
    assert not breaker.open and breaker.reason is None


@pytest.mark.parametrize("error", [OllamaUnavailable("refused"), Cancelled(), GateClosed("full", 1), ValueError("bug")])
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
    fail(breaker, OllamaTimeout("late"), 2)
    assert breaker.open and str(HANG_TIMEOUTS + 2) in breaker.reason
    attempt(breaker)
    assert not breaker.open


def test_degraded_for_a_while_after_a_timeout(breaker, clock):
    """One timeout is a reason for a minute, an open breaker for as long as it is open."""
    assert breaker.reason is None
    fail(breaker, OllamaTimeout("late"))
    assert "timed out: 1" in breaker.reason
    clock.tick(RECENT_SECONDS)
    assert breaker.reason is None
    fail(breaker, OllamaTimeout("late"), 2)
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
    assert outcomes.count("trial") == 1 and sum(type(found) is OllamaUnavailable for found in outcomes) == 49
