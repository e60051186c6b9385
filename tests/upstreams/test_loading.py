"""Loads of models: shared, not ended by callers that leave, and done before the service is ready."""

import threading
import time

import pytest

from llama_api.errors import OllamaError, OllamaRefused
from llama_api.upstreams import loading
from llama_api.waiting import Cancellation, Cancelled, Progress
from tests.support.fakes import in_threads, until
from tests.upstreams.test_fleet import LONG, Client, Scene

MODEL = "llama3:8b"


class Loading(Client):
    """An Ollama whose model has to be loaded first, which lasts until ``go``; nothing else is asked meanwhile."""

    def __init__(self, name):
        super().__init__(name)
        self.in_memory, self.loads, self.errors, self.go = [], 0, [], threading.Event()
        self.proceed.clear()

    def load(self, model, cancellation):
        self.loads += 1
        assert self.go.wait(LONG)
        if self.errors:
            raise self.errors.pop(0)
        self.in_memory = [{"name": model, "expires_at": "2999-01-01T00:00:00Z"}]


@pytest.fixture
def client():
    return Loading("a")


def test_all_who_want_a_model_share_its_load(client):
    """Twenty callers, one load; who comes later begins another."""
    scene = Scene(client)
    threading.Timer(0.2, client.go.set).start()
    assert in_threads(20, lambda number: scene.fleet.load(MODEL, Cancellation(), Progress())) == [None] * 20
    assert client.loads == 1
    scene.fleet.load(MODEL, Cancellation(), Progress())
    assert client.loads == 2


def test_who_leaves_ends_only_his_own_wait(client):
    """The load goes on, and the next caller has it."""
    scene, cancellation = Scene(client), Cancellation()
    threading.Timer(0.05, cancellation.request).start()
    with pytest.raises(Cancelled):
        scene.fleet.load(MODEL, cancellation, Progress())
    threading.Timer(0.05, client.go.set).start()
    scene.fleet.load(MODEL, Cancellation(), Progress())
    assert client.loads == 1


@pytest.mark.parametrize("error", [OllamaRefused(500, "out of memory"), ZeroDivisionError("a bug")])
def test_a_load_that_fails_is_told_to_all(client, error):
    """Each waiter gets the error, even an unforeseen one, and the next load is a new one."""
    scene = Scene(client)
    client.errors = [error]
    threading.Timer(0.1, client.go.set).start()
    outcomes = in_threads(5, lambda number: scene.fleet.load(MODEL, Cancellation(), Progress()))
    assert outcomes == [error] * 5 and client.loads == 1
    scene.fleet.load(MODEL, Cancellation(), Progress())


# A generation whose model has to be loaded


def test_a_generation_goes_on_while_its_model_is_loaded(client):
    """Its caller has left: it is ended once the model is there, not before."""
    scene = Scene(client)
    run, outcome = scene.begin()
    until(lambda: run.progress.state == "loading")
    run.cancellation.request()
    time.sleep(0.2)
    assert not outcome and client.calls
    client.in_memory = [{"name": MODEL}]
    assert isinstance(until(lambda: outcome)[0], Cancelled)


def test_a_generation_whose_model_is_loaded_ends_at_once(client):
    """A probe soon shows that the call is not waiting for a load."""
    scene = Scene(client)
    run, outcome = scene.begin()
    until(lambda: run.progress.state == "loading")
    client.in_memory = [{"name": MODEL}]
    until(lambda: run.progress.state == "writing")
    run.cancellation.request()
    assert isinstance(until(lambda: outcome, 1)[0], Cancelled)


def test_an_operator_ends_it_even_then(client):
    """A generation cancelled with a reason does not wait for the load."""
    scene = Scene(client)
    run, outcome = scene.begin()
    until(lambda: run.progress.state == "loading")
    run.cancellation.request(ValueError("an operator"))
    assert isinstance(until(lambda: outcome)[0], Cancelled)


def test_a_memory_that_is_never_told_keeps_nobody(client):
    """Where /api/ps lists nothing right after an answer it says nothing, so nothing waits for it."""
    scene = Scene(client)
    client.proceed.set()
    scene.ask()
    scene.probed()
    client.proceed.clear()
    run, outcome = scene.begin(prompt="another")
    until(lambda: run.progress.host)
    assert run.progress.state == "writing"
    run.cancellation.request()
    assert isinstance(until(lambda: outcome)[0], Cancelled)


# At the start


def test_the_first_model_is_loaded_at_the_start():
    """On each host; the service is not ready before one has it."""
    clients = [Loading("a"), Loading("b")]
    scene = Scene(*clients, preload=True)
    until(lambda: [client.loads for client in clients] == [1, 1])
    state = scene.fleet.state()
    assert MODEL in state.unready and state.unusable is None and state.degraded is None
    clients[1].go.set()
    until(lambda: scene.fleet.state().unready is None)
    clients[0].go.set()
    scene.probed()
    assert [client.loads for client in clients] == [1, 1]


def test_a_load_at_the_start_is_tried_again(client, monkeypatch):
    """Meanwhile, Ollama's error is the reason."""
    monkeypatch.setattr(loading, "RETRY_SECONDS", 0.1)
    client.errors = [OllamaRefused(500, "x")]
    client.go.set()
    scene = Scene(client, preload=True)
    until(lambda: "could not load" in (scene.fleet.state().unready or "could not load"))
    until(lambda: scene.fleet.state().unready is None)
    assert client.loads == 2


def test_a_load_at_the_start_that_a_fault_of_ours_ended_is_tried_again_later(client, caplog):
    """Not at each probe; the reason names the log, which has the stack, and not the fault itself."""
    client.errors = [ZeroDivisionError("/secret/path")] * 1000
    client.go.set()
    scene = Scene(client, preload=True)
    unready = until(lambda: "could not load" in (told := scene.fleet.state().unready or "") and told)
    assert "secret" not in unready and "log" in unready and "ZeroDivisionError" in caplog.text
    scene.probed(), scene.probed()
    assert client.loads == 1


def test_a_load_that_failed_is_told_of_its_host(monkeypatch):
    """The others serve; that one is reported until it has the model."""
    monkeypatch.setattr(loading, "RETRY_SECONDS", 0.1)
    clients = [Loading("a"), Loading("b")]
    clients[0].errors = [OllamaRefused(500, "/secret/path")] * 1000
    for client in clients:
        client.go.set()
    scene = Scene(*clients, preload=True)
    state = until(lambda: (state := scene.fleet.state()).degraded and state.unready is None and state)
    assert state.unusable is None and [host["usable"] for host in state.hosts] == [True, True]
    reason = state.hosts[0]["reason"]
    assert "could not load the model llama3:8b" in reason and "status 500" in reason and "secret" not in reason
    assert state.hosts[1]["reason"] is None and state.degraded == f"a: {reason}"
    clients[0].errors.clear()
    until(lambda: scene.fleet.state().degraded is None)


@pytest.mark.parametrize("lost, again", [
    ([], True), ([{"name": "other"}], False), ([{"name": MODEL}], False)], ids=["restarted", "replaced", "kept"])
def test_it_is_loaded_again_where_ollama_has_started_anew(client, lost, again):
    """Known by a memory that is empty before its time; what another model has replaced is left alone."""
    client.go.set()
    scene = Scene(client, preload=True)
    until(lambda: scene.fleet.state().unready is None)
    scene.probed()
    client.in_memory = lost
    scene.probed(), scene.probed()
    assert until(lambda: client.loads == 1 + again) and scene.fleet.state().unready is None


def test_it_is_loaded_again_after_an_outage(client):
    """Whatever was in memory before."""
    client.go.set()
    scene = Scene(client, preload=True)
    until(lambda: scene.fleet.state().unready is None)
    client.in_memory, client.error = [], OllamaError()
    scene.probed()
    client.error = None
    until(lambda: client.loads == 2)


def test_a_model_that_has_had_its_time_is_not_loaded_again(client):
    """Its keep-alive is the operator's will."""
    client.go.set()
    scene = Scene(client, preload=True)
    until(lambda: scene.fleet.state().unready is None)
    client.in_memory = [{"name": MODEL, "expires_at": "2001-01-01T00:00:00Z"}]
    scene.probed()
    client.in_memory = []
    scene.probed(), scene.probed()
    assert client.loads == 1
