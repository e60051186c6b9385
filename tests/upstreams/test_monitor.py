"""The state of one Ollama: its probes, once a second, shared by all callers."""

import threading
import time

import pytest

from llama_api.errors import NotOllama, OllamaBusy, OllamaTimeout, OllamaUnavailable
from llama_api.upstreams import Monitor, fault_of_version
from llama_api.upstreams import monitor as module
from llama_api.upstreams.probe import Loaded
from tests.support.fakes import Clock, in_threads, until


class Client:
    """An Ollama with one model, whose calls are counted and may fail."""

    def __init__(self):
        self.models = [{"name": "llama3:8b", "digest": "build-1"}]
        self.in_memory = [{"name": "llama3:8b", "size": 100, "size_vram": 40, "context_length": 8192}]
        self.error = self.version_error = self.ps_error = None
        self.probes, self.delay = 0, 0.0

    def inventory(self, seconds):
        self.probes += 1
        time.sleep(min(self.delay, seconds))
        if self.error:
            raise self.error
        return self.models

    def loaded(self, seconds):
        assert 0 < seconds < 1
        if self.ps_error:
            raise self.ps_error
        return self.in_memory

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
    return Monitor(client, "a:11434", clock=Clock())


# The probe


def test_all_is_well(monitor):
    """Reachable, with version, models, builds and what is in memory, and no reason to complain."""
    assert not monitor.known
    probe = monitor.probe()
    assert monitor.known and monitor.fresh and monitor.latest is probe
    assert (probe.reachable, probe.version, probe.builds, probe.reason) == (
        True, "0.33.0", {"llama3:8b": "build-1"}, None)
    assert probe.loaded == {"llama3:8b": Loaded(40, 8192)} and probe.models[0]["digest"] == "build-1"


@pytest.mark.parametrize("error, words", [
    (OllamaUnavailable(), "ollama serve"), (OllamaTimeout(), "restart"), (NotOllama(502), "protocol"),
    (OllamaBusy(), "busy")])
def test_an_ollama_that_cannot_be_asked_is_not_reachable(monitor, client, error, words):
    """Whatever keeps the list of models from coming is the reason; what it had last is remembered."""
    monitor.probe()
    client.error = error
    probe = monitor.probe()
    assert not probe.reachable and not probe.builds and words in probe.reason
    assert [model["name"] for model in probe.models] == ["llama3:8b"]


@pytest.mark.parametrize("name, value", [("version_error", "version"), ("ps_error", "loaded")])
def test_what_else_does_not_come_is_no_trouble(monitor, client, name, value):
    """Version and memory are reported if available; without them all is well. /api/ps waits while a model loads."""
    setattr(client, name, OllamaTimeout())
    probe = monitor.probe()
    assert probe.reachable and getattr(probe, value) is None and probe.builds


@pytest.mark.parametrize("listed, same", [
    ("llama3:8b", "llama3:8b"), ("LLaMA3:8B", "llama3:8b"), ("registry.ollama.ai/library/llama3", "llama3:latest"),
    ("me/llama3", "me/llama3:latest")])
def test_models_are_known_by_their_normal_names(monitor, client, listed, same):
    """Case, the default tag, namespace and registry do not matter."""
    client.models, client.in_memory = [{"name": listed, "digest": "x"}], [{"name": listed}]
    probe = monitor.probe()
    assert probe.builds == {same: "x"} and probe.loaded == {same: Loaded()}


@pytest.mark.parametrize("models", [[], [{}], [{"name": None}], [{"name": 5, "digest": "x"}]])
def test_a_list_of_anything_is_survived(monitor, client, models):
    """Entries without a name are no model."""
    client.models = client.in_memory = models
    probe = monitor.probe()
    assert probe.reachable and not probe.builds and not probe.models and not probe.loaded


@pytest.mark.parametrize("entry, loaded", [
    ({}, Loaded()), ({"size": 0, "size_vram": 0}, Loaded()), ({"size": 10, "size_vram": 0}, Loaded(0)),
    ({"size": 10, "size_vram": 10}, Loaded(100)), ({"size": "10", "size_vram": 5}, Loaded()),
    ({"size": 10, "size_vram": 20}, Loaded(100)), ({"context_length": 4096}, Loaded(None, 4096)),
    ({"context_length": "big"}, Loaded())])
def test_shares_and_windows_are_read_with_care(monitor, client, entry, loaded):
    """Missing and invalid figures are unknown."""
    client.in_memory = [{"name": "llama3:8b", **entry}]
    assert monitor.probe().loaded == {"llama3:8b": loaded}


def test_a_model_without_a_digest_is_there(monitor, client):
    """An older Ollama without digests is served all the same."""
    client.models = [{"name": "llama3:8b"}]
    assert monitor.probe().builds == {"llama3:8b": None}


@pytest.mark.parametrize("version, cuts", [
    ("0.12.5", True), ("0.3.14", True), ("0.12.5-rc1", True), ("0.12.6", False), ("0.33.0+embedded", False),
    ("1.0.0", False), ("0.0.0", False), ("new", False), (None, False)])
def test_versions_that_cut_prompts_are_known(version, cuts):
    """Those before 0.12.6; builds from source say 0.0.0, so their version is unknown."""
    assert (fault_of_version(version) is not None) is cuts


def test_a_version_that_cuts_prompts_is_warned_of_once(monitor, client, caplog):
    """At the start, and not with each probe."""
    client.version = lambda seconds: "0.12.5"
    monitor.probe(), monitor.probe()
    warnings = {(record.created, record.getMessage()) for record in caplog.records if "0.12.6" in record.getMessage()}
    assert len(warnings) == 1 and "truncates" in warnings.pop()[1]


def test_a_change_is_logged_once(monitor, client, caplog):
    """Up and down are one line each, not one a probe."""
    caplog.set_level("INFO", logger="llama_api.upstreams.monitor")
    for error in (None, None, OllamaUnavailable(), OllamaUnavailable(), None):
        client.error = error
        monitor.probe()
    seen = list(dict.fromkeys((record.created, record.getMessage()) for record in caplog.records))
    assert [message.partition("; ")[0] for _, message in seen] == [
        "Ollama a:11434: version 0.33.0", "Ollama a:11434: Nothing accepts connections at OLLAMA_URL",
        "Ollama a:11434: version 0.33.0"]


# The thread


def test_callers_share_one_probe(client):
    """Fifty callers at once wait for the same first probe; listeners get its result."""
    client.delay, noted = 0.05, []
    monitor = Monitor(client)
    monitor.subscribe(noted.append)

    def ask(number):
        monitor.wait_fresh()
        return monitor.latest

    probes = in_threads(50, ask)
    assert all(probe.reachable for probe in probes) and client.probes <= 2 and probes[0] in noted


def test_a_probe_is_never_older_than_two_seconds(client):
    """With the real times, over three rounds: the state is fresh at every moment, though no caller waits."""
    monitor, ages = Monitor(client), []
    monitor.wait_fresh()
    end = time.monotonic() + 2.5
    while time.monotonic() < end:
        ages.append(time.monotonic() - monitor.latest.at)
        time.sleep(0.02)
    assert max(ages) <= module.FRESH_SECONDS and client.probes >= 2


def test_a_caller_is_told_in_time_though_ollama_hangs(client):
    """The first caller of all gets an answer, not an endless wait."""
    release = threading.Event()
    client.inventory = lambda seconds: release.wait(30) and []
    monitor = Monitor(client)
    monitor.wait_fresh()
    assert not monitor.known and not monitor.latest.reachable and "not answered yet" in monitor.latest.reason
    release.set()


def test_a_hurried_probe_comes_at_once(client, monkeypatch):
    """A caller that has seen Ollama fail need not wait for the next round."""
    monkeypatch.setattr(module, "PROBE_EVERY", 3600)
    monitor = Monitor(client)
    monitor.wait_fresh()
    client.error = OllamaUnavailable()
    monitor.hurry()
    until(lambda: not monitor.latest.reachable)


def test_one_thread_probes(client):
    """However many ask, and however often, there is one thread."""
    monitor, before = Monitor(client), threading.active_count()
    in_threads(10, lambda number: monitor.wait_fresh())
    assert threading.active_count() <= before + 1


def test_a_probe_that_crashes_is_not_the_last(client, monkeypatch, caplog):
    """An unforeseen error is logged and the probes continue."""
    monkeypatch.setattr(module, "PROBE_EVERY", 0.02)
    client.error = ZeroDivisionError("a bug")
    monitor = Monitor(client)
    monitor.start()
    until(lambda: client.probes > 1)
    client.error = None
    until(lambda: monitor.latest.reachable)
    assert any("the probe failed" in record.getMessage() for record in caplog.records)
