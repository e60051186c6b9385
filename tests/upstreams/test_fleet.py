"""Several Ollamas as one: which are usable, what is tried next, and what is reported."""

import threading
import time
from collections import Counter

import pytest

from llama_api.answer import Completion, Piece
from llama_api.errors import (GenerationCancelled, ModelNotFound, OllamaBrokeOff, OllamaBusy, OllamaError,
                              OllamaGarbled, OllamaHangs, OllamaRefused, OllamaReported, OllamaReset, OllamaTimeout,
                              OllamaUnavailable, PromptTooLong, QueueTimeout, RemoteModel)
from llama_api.upstreams import Breaker, Fleet, Monitor, Slots, Upstream
from llama_api.upstreams import fleet as module
from llama_api.waiting import Cancellation, Cancelled, Progress
from tests.support.fakes import call, in_threads, until

LONG = 30.0


class Client:
    """A controlled Ollama: ``failures`` are raised one a call, after ``pieces`` when ``late``."""

    def __init__(self, name, builds=None):
        self.name, self.builds = name, {"llama3:8b": "build-1"} if builds is None else builds
        self.error, self.in_memory, self.release = None, [{"name": name} for name in self.builds], "0.33.0"
        self.failures, self.pieces, self.late, self.calls = [], ["a", "b"], False, []
        self.proceed, self.completion = threading.Event(), Completion("stop", 7, 2)
        self.proceed.set()

    def inventory(self, seconds):
        if self.error:
            raise self.error
        return [{"name": name, "digest": build} for name, build in self.builds.items()]

    def loaded(self, seconds):
        if self.error:
            raise self.error
        return self.in_memory

    def version(self, seconds):
        return self.release

    def show(self, model, **fields):
        return {"shown": self.name}

    def generate(self, asked, digest, seconds, cancellation, publish, trace=None):
        self.calls.append((asked, digest, seconds))
        failure = self.failures.pop(0) if self.failures else None
        with cancellation.interrupts(self.proceed.set):
            self.proceed.wait(LONG)
        if cancellation.requested:
            raise Cancelled
        if failure is None or self.late:
            publish([Piece(text) for text in self.pieces])
        if failure is not None:
            raise failure
        return self.completion


class Run:
    """A generation that notes what it is given."""

    def __init__(self):
        self.started_at, self.cancellation, self.progress = time.monotonic(), Cancellation(), Progress()
        self.pieces = []

    def publish(self, pieces):
        if not self.pieces:
            self.progress.first_piece_at, self.progress.state = time.monotonic(), "writing"
        self.pieces += pieces


class Observer:
    """An observer that records the facts."""

    def __init__(self):
        self.ended, self.counts, self.failures, self.matches = [], Counter(), [], []

    def waiting(self, change):
        self.counts["waiting"] += change

    def running(self, host, change):
        self.counts[host] += change

    def failed_over(self, host):
        self.failures.append(host)

    def prefix_matched(self, result):
        self.matches.append(result)

    def generation_ended(self, ended):
        self.ended.append(ended)


class Scene:
    """A fleet of Ollamas with one slot each, ``a``, ``b`` …, as many as there are ``clients``."""

    def __init__(self, *clients, models=("llama3:8b",), slots=1, **settings):
        self.clients, self.observer = clients, Observer()
        upstreams = [Upstream(client.name, client, Monitor(client, client.name), Breaker(),
                              Slots(f"http://{client.name}", slots)) for client in clients]
        self.fleet = Fleet(upstreams, models, self.observer, **settings)
        self.fleet.state()

    def ask(self, run=None, **fields):
        return self.fleet.generate(call(**fields), run or Run())

    def begin(self, **fields):
        """A generation in a thread of its own; returns its run, and where its outcome will be."""
        run, outcome = Run(), []

        def work():
            try:
                outcome.append(self.ask(run, **fields))
            except Exception as error:
                outcome.append(error)

        threading.Thread(target=work, daemon=True).start()
        return run, outcome

    def host(self, name):
        return next(host for host in self.fleet.state().hosts if host["host"] == name)

    def probed(self):
        """Wait until each Ollama has been probed after now."""
        now = time.monotonic()
        for upstream in self.fleet.upstreams:
            upstream.monitor.hurry()
            until(lambda upstream=upstream: upstream.monitor.latest.at > now)


def two(**settings):
    return Scene(Client("a"), Client("b"), **settings)


# Which are usable


def test_a_generation_tells_where_and_in_which_build():
    """Host, digest, the facts of its end, and where it is meanwhile."""
    scene, run = two(), Run()
    made = scene.ask(run)
    assert (made.host, made.digest, made.completion.finish_reason) == ("a", "build-1", "stop")
    assert (run.progress.host, run.progress.state) == ("a", "writing") and len(run.pieces) == 2
    ended, = scene.observer.ended
    assert (ended.outcome, ended.host) == ("stop", "a") and ended.completion is made.completion
    assert 0 <= ended.queue_seconds < LONG and 0 <= ended.first_piece_seconds <= ended.seconds
    assert not any(scene.observer.counts.values())


def test_work_goes_where_there_is_least():
    """To the smallest share of taken slots, then to the least recently used."""
    scene = two(slots=2)
    for client in scene.clients:
        client.proceed.clear()
    runs = [scene.begin(prompt=str(number))[0] for number in range(4)]
    until(lambda: all(run.progress.host for run in runs))
    assert Counter(run.progress.host for run in runs) == {"a": 2, "b": 2}
    for client in scene.clients:
        client.proceed.set()
    until(lambda: len(scene.observer.ended) == 4)
    assert {scene.ask(prompt=f"more {number}").host for number in range(2)} == {"a", "b"}


def test_a_loaded_model_is_preferred():
    """Of two with free slots that one generates which need not load."""
    scene = two(slots=2)
    scene.clients[0].in_memory = [{"name": "other"}]
    scene.probed()
    assert [scene.ask(prompt=str(number)).host for number in range(3)] == ["b"] * 3


@pytest.mark.parametrize("builds, usable", [
    (["1", "1", "2"], "ab"), (["1", "2", "2"], "bc"), (["1", "2", "3"], "a"), ([None, "2"], "b"), (["1", "2"], "a"),
    (["2", "1", "1", "2"], "ad")])
def test_the_build_that_most_have_answers(builds, usable):
    """Of equally many the first listed; the others are left out, and named with the reason."""
    scene = Scene(*(Client(name, {} if build is None else {"llama3:8b": build})
                    for name, build in zip("abcd", builds)))
    state = scene.fleet.state()
    assert "".join(host["host"] for host in state.hosts if host["usable"]) == usable
    assert state.unusable is None and state.degraded
    for host in state.hosts:
        if not host["usable"]:
            assert host["reason"] in state.degraded and host["host"] in state.degraded
            assert ("another build" if host["digest"] else "ollama pull") in host["reason"]
    for _ in range(4):
        assert scene.ask().host in usable


def test_builds_are_told_by_the_newest_probes():
    """Another majority makes what was generated before stale since then; an outage changes nothing."""
    scene = Scene(Client("a"))
    assert scene.fleet.stale_since("llama3:8b", "build-1") is None
    before = time.monotonic()
    scene.clients[0].builds = {"llama3:8b": "build-2"}
    scene.probed()
    since = scene.fleet.stale_since("LLaMA3:8b", "build-1")
    assert before <= since <= time.monotonic() and scene.fleet.stale_since("llama3:8b", "build-2") is None
    scene.clients[0].error = OllamaUnavailable()
    scene.probed()
    assert scene.fleet.stale_since("llama3:8b", "build-1") == since


def test_what_was_never_seen_makes_nothing_stale():
    """Nor is it waited for."""
    client = Client("a")
    client.error = OllamaUnavailable()
    assert Scene(client).fleet.stale_since("llama3:8b", "build-1") is None


def test_each_model_has_its_own_hosts():
    """Presence and build are looked at for the model that is asked for."""
    both = {"llama3:8b": "build-1", "other:latest": "x"}
    scene = Scene(Client("a"), Client("b", both), models=("llama3:8b", "other"))
    assert [scene.ask(model="other").host for _ in range(3)] == ["b"] * 3
    assert scene.ask(model="other").digest == "x" and scene.fleet.state().degraded is None
    with pytest.raises(ModelNotFound):
        scene.ask(model="third")
    scene.clients[1].builds = {"llama3:8b": "build-1"}
    scene.probed()
    assert "ollama pull other" in scene.fleet.state().degraded


# What is tried next


@pytest.mark.parametrize("failure", [OllamaUnavailable(), OllamaBusy(), OllamaReset(), OllamaBrokeOff()])
def test_before_a_piece_the_next_one_is_tried(failure):
    """Once each; the failed one is left alone until a probe finds it well; the caller notices nothing."""
    scene = two()
    scene.clients[0].failures = [failure]
    run = Run()
    assert scene.ask(run).host == "b" and len(run.pieces) == 2
    assert scene.observer.failures == ["a"] and [ended.outcome for ended in scene.observer.ended] == ["stop"]
    assert [len(client.calls) for client in scene.clients] == [1, 1]
    assert scene.clients[1].calls[0][2] <= scene.clients[0].calls[0][2]  # the one deadline
    until(lambda: scene.host("a")["usable"])
    assert {scene.ask(prompt=str(number)).host for number in range(3)} == {"a", "b"}


def test_one_that_failed_is_left_alone_until_it_is_well():
    """As long as its probes fail, it is not tried."""
    scene = two()
    scene.clients[0].failures, scene.clients[0].error = [OllamaUnavailable()], OllamaUnavailable()
    assert [scene.ask(prompt=str(number)).host for number in range(5)] == ["b"] * 5
    assert len(scene.clients[0].calls) == 1 and not scene.host("a")["usable"]


@pytest.mark.parametrize("failure", [
    OllamaError(), OllamaRefused(500, "oom"), OllamaGarbled("x"), OllamaReported(), ModelNotFound("m"), PromptTooLong(),
    OllamaTimeout()], ids=lambda error: type(error).__name__)
def test_an_answer_is_not_tried_elsewhere(failure):
    """Any other status, an error record, garbage or the deadline end it."""
    scene = two()
    scene.clients[0].failures = [failure]
    with pytest.raises(type(failure)):
        scene.ask()
    assert scene.clients[1].calls == [] and [ended.outcome for ended in scene.observer.ended] == ["error"]
    assert scene.observer.failures == [] and not any(scene.observer.counts.values())


def test_what_waits_for_one_that_is_gone_goes_elsewhere(monkeypatch):
    """If it neither answers nor refuses for a while, callers without a piece from it are tried elsewhere."""
    monkeypatch.setattr(module, "GONE_SECONDS", 0.2)
    scene = two(slots=2)
    scene.clients[0].proceed.clear()
    runs = [scene.begin(prompt=str(number)) for number in range(2)]
    until(lambda: sorted(run.progress.host or "" for run, _ in runs) == ["a", "b"])
    scene.clients[0].error = OllamaTimeout()
    assert [until(lambda outcome=outcome: outcome)[0].host for _, outcome in runs] == ["b", "b"]
    assert scene.observer.failures == ["a"] and scene.fleet.state().degraded.startswith("a: ")
    scene.clients[0].proceed.set()


@pytest.mark.parametrize("failure", [OllamaReset(), OllamaBrokeOff(), OllamaTimeout()])
def test_after_a_piece_nothing_is_tried(failure):
    """A generation that has begun is never repeated; a timeout says that it was flowing."""
    scene, run = two(), Run()
    scene.clients[0].failures, scene.clients[0].late = [failure], True
    with pytest.raises(type(failure)) as caught:
        scene.ask(run)
    assert len(run.pieces) == 2 and scene.clients[1].calls == []
    assert getattr(caught.value, "flowing", True)


def test_when_all_fail_the_last_failure_is_told():
    """Each is tried once, and no more."""
    scene = Scene(*(Client(name) for name in "abc"))
    for client, failure in zip(scene.clients, (OllamaReset(), OllamaUnavailable(), OllamaBusy())):
        client.failures = [failure] * 9
    with pytest.raises(OllamaBusy):
        scene.ask()
    assert [len(client.calls) for client in scene.clients] == [1, 1, 1]
    assert scene.observer.failures == ["a", "b"]


def test_a_further_try_goes_before_those_who_came_later():
    """It waits for a slot of the next one in front of all others."""
    scene = two()
    for client in scene.clients:
        client.proceed.clear()
    scene.clients[0].failures = [OllamaReset()]
    first, outcome = scene.begin(prompt="first")
    until(lambda: first.progress.host == "a")
    second, _ = scene.begin(prompt="second")
    until(lambda: second.progress.host == "b")
    third, _ = scene.begin(prompt="third")
    until(lambda: scene.observer.counts["waiting"] == 1)
    scene.clients[0].error = OllamaUnavailable()
    scene.clients[0].proceed.set()
    until(lambda: scene.observer.counts["waiting"] == 2)
    assert first.progress.state == "waiting" and first.progress.host is None and first.progress.wait().before == 0
    scene.clients[1].proceed.set()
    assert until(lambda: outcome)[0].host == "b"
    until(lambda: len(scene.observer.ended) == 3)
    assert [asked.question for asked, _, _ in scene.clients[1].calls] == ["second", "first", "third"]


def test_a_single_one_is_tried_a_few_times(monkeypatch):
    """With one Ollama a connect failure and its 503 are tried again, nothing else is."""
    monkeypatch.setattr(module, "BACKOFF_SECONDS", 0.001)
    scene = Scene(client := Client("a"))
    for failure in (OllamaUnavailable(), OllamaBusy()):
        client.failures = [failure] * 2
        assert scene.ask().host == "a"
        client.failures = [failure] * 3
        with pytest.raises(type(failure)):
            scene.ask()
    assert len(client.calls) == 12 and client.failures == []
    client.failures = [OllamaReset()]
    with pytest.raises(OllamaReset):
        scene.ask()
    assert scene.observer.failures == []


@pytest.mark.parametrize("names", ["a", "ab"])
def test_who_finds_all_busy_is_told_when_to_come_again(monkeypatch, names):
    """After as long as a slot is held, by the recent speed: fast generations make it the next second."""
    monkeypatch.setattr(module, "BACKOFF_SECONDS", 0.001)
    scene = Scene(*map(Client, names))
    scene.ask()
    for client in scene.clients:
        client.failures = [OllamaBusy()] * 3
    with pytest.raises(OllamaBusy) as caught:
        scene.ask()
    assert 1 <= caught.value.retry_after < OllamaBusy().retry_after


def test_no_try_begins_beyond_the_deadline(monkeypatch):
    """When the pause before the next try would pass it, the failure stands."""
    monkeypatch.setattr(module, "BACKOFF_SECONDS", 10.0)
    scene = Scene(client := Client("a"), timeout=1.0)
    client.failures = [OllamaBusy()]
    with pytest.raises(OllamaBusy):
        scene.ask()
    assert len(client.calls) == 1


def test_the_pause_between_tries_can_be_cancelled(monkeypatch):
    """A cancelled caller does not wait for the next try, and counts as cancelled."""
    monkeypatch.setattr(module, "BACKOFF_SECONDS", LONG)
    scene = Scene(client := Client("a"))
    client.failures = [OllamaBusy()]
    run, outcome = scene.begin()
    until(lambda: client.calls)
    run.cancellation.request()
    assert isinstance(until(lambda: outcome)[0], Cancelled) and len(client.calls) == 1
    assert [ended.outcome for ended in scene.observer.ended] == ["cancelled"]


def test_a_single_one_is_asked_whatever_its_probes_say():
    """Its answer to the call is newer than any probe."""
    scene = Scene(client := Client("a", {}))
    client.error = OllamaUnavailable()
    scene.probed()
    assert scene.fleet.state().unusable and scene.ask().host == "a"


def test_when_none_is_usable_it_is_told_at_once():
    """Without a try: no Ollama answers, or none has the model."""
    scene = two()
    for client in scene.clients:
        client.error = OllamaUnavailable()
    scene.probed()
    with pytest.raises(OllamaUnavailable):
        scene.ask()
    state = scene.fleet.state()
    assert "a: " in state.unusable and "b: " in state.unusable and state.unready and not state.ollama["reachable"]
    for client in scene.clients:
        client.error, client.builds = None, {}
    scene.probed()
    with pytest.raises(ModelNotFound, match="ollama pull llama3:8b"):
        scene.ask()
    assert scene.fleet.state().ollama == {"reachable": True, "version": "0.33.0", "model_present": False}
    assert all(client.calls == [] for client in scene.clients)


def test_who_waits_for_none_is_told_within_a_moment(monkeypatch):
    """Those who queue when the last one goes out of use are not left to wait forever, nor failed by one lost probe."""
    monkeypatch.setattr("llama_api.upstreams.availability.GRACE_SECONDS", 0.2)
    scene = two()
    for client in scene.clients:
        client.proceed.clear()
    holders = [scene.begin(prompt=str(number)) for number in range(2)]
    until(lambda: all(run.progress.host for run, _ in holders))
    _, waiting = scene.begin(prompt="waits")
    until(lambda: scene.observer.counts["waiting"] == 1)
    for client in scene.clients:
        client.error = OllamaUnavailable()
    until(lambda: waiting)
    assert isinstance(waiting[0], OllamaUnavailable)
    for client in scene.clients:
        client.proceed.set()


@pytest.mark.parametrize("reason", [None, GenerationCancelled()])
def test_a_cancelled_generation_ends_wherever_it_is(reason):
    """Waiting or writing; it is neither a failure nor tried elsewhere."""
    scene = two()
    for client in scene.clients:
        client.proceed.clear()
    running = [scene.begin(prompt=str(number)) for number in range(2)]
    until(lambda: all(run.progress.host for run, _ in running))
    waiting, outcome = scene.begin(prompt="waits")
    until(lambda: scene.observer.counts["waiting"] == 1)
    for run, ended in [(waiting, outcome), running[0]]:
        run.cancellation.request(reason)
        assert isinstance(until(lambda ended=ended: ended)[0], Cancelled)
    until(lambda: scene.observer.ended)
    assert [ended.outcome for ended in scene.observer.ended] == ["cancelled"]
    running[1][0].cancellation.request()
    until(lambda: len(scene.observer.ended) == 2)
    assert not any(scene.observer.counts.values())


def test_the_breaker_is_each_ones_own():
    """One that hangs is the last to be tried, one trial at a time; the others go on."""
    scene = two()
    hanging = scene.clients[0]
    hanging.failures = [OllamaTimeout()] * 3
    for _ in range(8):
        try:
            scene.ask()
        except OllamaTimeout:
            pass
    assert len(hanging.calls) == 3 and not hanging.failures
    assert "the last 3 generations timed out" in scene.fleet.state().degraded and scene.host("a")["usable"]
    assert [scene.ask(prompt=str(number)).host for number in range(4)] == ["b"] * 4
    for client in scene.clients:
        client.proceed.clear()
    runs = [scene.begin(prompt=str(number))[0] for number in range(3)]
    until(lambda: sorted(run.progress.host or "" for run in runs) == ["", "a", "b"])
    for client in scene.clients:
        client.proceed.set()
    until(lambda: scene.fleet.state().degraded is None)


def test_all_hanging_is_told_at_once():
    """A single one that hangs lets one trial through and turns the others away."""
    scene = Scene(client := Client("a"), queue=1)
    client.failures = [OllamaTimeout()] * 3
    for _ in range(3):
        with pytest.raises(OllamaTimeout):
            scene.ask()
    client.proceed.clear()
    trial, outcome = scene.begin()
    until(lambda: trial.progress.host)
    with pytest.raises(OllamaHangs):
        scene.ask(prompt="another")
    client.proceed.set()
    assert until(lambda: outcome)[0].host == "a" and scene.ask(prompt="again").host == "a"


def test_the_wait_for_a_slot_is_bounded():
    """By the queue's own limit at first."""
    scene = Scene(client := Client("a"), queue_timeout=0.05)
    client.proceed.clear()
    run, _ = scene.begin()
    until(lambda: run.progress.host)
    with pytest.raises(QueueTimeout):
        scene.ask(prompt="late")
    client.proceed.set()
    until(lambda: scene.observer.ended)


# Reports


def test_the_state_tells_each_host():
    """The fields of GET /health, null where nothing is known."""
    scene = two(slots=3, models=("llama3:8b", "*"))
    first, second = scene.clients
    first.in_memory = [{"name": "llama3:8b", "size": 10, "size_vram": 9, "context_length": 4096}]
    second.error = OllamaTimeout()
    scene.probed()
    state = scene.fleet.state()
    assert state.hosts == [
        {"host": "a", "usable": True, "reachable": True, "version": "0.33.0", "model_present": True, "loaded": True,
         "gpu_percent": 90, "context_length": 4096, "digest": "build-1", "running": 0, "slots": 3, "reason": None},
        {"host": "b", "usable": False, "reachable": False, "version": None, "model_present": False, "loaded": None,
         "gpu_percent": None, "context_length": None, "digest": None, "running": 0, "slots": 3,
         "reason": "Ollama does not answer; restart it"}]
    assert state.queue == {"running": 0, "waiting": 0, "slots": 6, "limit": 64}
    assert state.ollama == {"reachable": True, "version": "0.33.0", "model_present": True}
    assert (state.unready, state.unusable) == (None, None) and state.degraded.startswith("b: Ollama does not answer")


@pytest.mark.parametrize("change, words", [
    ({"in_memory": [{"name": "llama3:8b", "size": 10, "size_vram": 5}]}, "NUM_CTX"), ({"release": "0.12.5"}, "0.12.6"),
    ({"in_memory": [{"name": "llama3:8b", "size": 10, "size_vram": 6}]}, None),
    ({"in_memory": [{"name": "llama3:8b", "size": 10, "size_vram": 0}]}, None), ({"release": None}, None)])
def test_what_is_amiss_is_told_with_its_cure(change, words):
    """Half of the model on the processor, or a version that cuts prompts; all on the processor is a choice."""
    scene = Scene(client := Client("a"))
    for name, value in change.items():
        setattr(client, name, value)
    scene.probed()
    state = scene.fleet.state()
    assert state.hosts[0]["usable"] and state.degraded == state.hosts[0]["reason"]
    assert state.degraded is None if words is None else words in state.degraded


def test_without_a_queue_it_is_full_when_all_slots_are_taken():
    """Whichever process has taken them; those of an Ollama that is out of use could not be had."""
    scene, elsewhere = two(queue=0), Slots("http://a", 1)
    assert scene.fleet.state().degraded is None
    assert elsewhere.take(1.0) == 0 and scene.fleet.state().degraded is None
    scene.clients[1].error = OllamaUnavailable()
    scene.probed()
    assert scene.fleet.state().degraded.endswith("; the queue is full")
    elsewhere.give_back(0)
    assert "full" not in scene.fleet.state().degraded


def test_a_stub_of_a_cloud_model_is_left_alone():
    """Where another Ollama has the model that one answers; where none has, nothing is sent."""
    scene = two()
    stub = {"name": "llama3:8b", "digest": "build-1", "remote_host": "https://ollama.example"}
    scene.clients[0].inventory = lambda seconds: [stub]
    scene.probed()
    for _ in range(3):
        scene.ask()
    assert [len(client.calls) for client in scene.clients] == [0, 3]
    assert "cloud model" in scene.fleet.state().hosts[0]["reason"]
    scene.clients[1].inventory = lambda seconds: [stub]
    scene.probed()
    for ask in (scene.ask, lambda: scene.fleet.show("llama3:8b"),
                lambda: scene.fleet.load("llama3:8b", Cancellation(), Progress())):
        with pytest.raises(RemoteModel, match="ollama pull llama3:8b"):
            ask()
    assert len(scene.clients[1].calls) == 3 and scene.fleet.inventory() == scene.fleet.loaded() == []


def test_the_inventory_is_that_of_all():
    """Each model once, in the build that answers; kept through an outage."""
    scene = Scene(Client("a", {"x:latest": "1", "y:latest": "1"}), Client("b", {"x:latest": "2", "z:latest": "1"}),
                  Client("c", {"x:latest": "2"}))
    expected = {"x:latest": "2", "y:latest": "1", "z:latest": "1"}
    assert {model["name"]: model["digest"] for model in scene.fleet.inventory()} == expected
    for client in scene.clients:
        client.error = OllamaUnavailable()
    scene.probed()
    assert {model["name"] for model in scene.fleet.inventory()} == expected.keys()
    with pytest.raises(OllamaUnavailable):
        scene.fleet.loaded()


def test_one_that_has_the_model_is_asked_about_it():
    """/api/show goes where the model is; /api/ps is asked of all."""
    scene = Scene(Client("a", {}), Client("b"))
    scene.clients[0].in_memory = [{"name": "x"}]
    scene.clients[1].in_memory = [{"name": "llama3:8b"}, {"name": "x"}]
    assert scene.fleet.show("llama3:8b") == {"shown": "b"}
    assert sorted(model["name"] for model in scene.fleet.loaded()) == ["llama3:8b", "x"]


def test_a_hit_never_waits_for_a_probe():
    """While an Ollama hangs, the build is known although a probe is under way."""
    class Unawaited(Monitor):
        def wait_fresh(self, seconds):
            raise AssertionError("a hit waits for a probe")

    client, release = Client("a"), threading.Event()
    client.inventory = lambda seconds: release.wait(LONG) and []
    fleet = Fleet([Upstream("a", client, Unawaited(client), Breaker(), Slots("http://a", 1))], ["m"], Observer())
    assert in_threads(5, lambda number: fleet.stale_since("m", "x")) == [None] * 5
    release.set()


# Where a beginning is known

LONG_PROMPT = "Once upon a time " * 100


def test_a_conversation_goes_back_to_where_it_was():
    """Though another has less to do; a short prompt has no place."""
    scene = two(slots=3)
    first = scene.ask(prompt=LONG_PROMPT).host
    assert [scene.ask(prompt=LONG_PROMPT + str(number)).host for number in range(4)] == [first] * 4
    scene.ask(prompt="short")
    assert scene.observer.matches == ["none", *["hit"] * 4, "none"]


def test_a_known_beginning_never_makes_it_wait():
    """With the slot there taken it goes elsewhere at once, which is where it is known from then on."""
    scene = two()
    first = scene.ask(prompt=LONG_PROMPT).host
    client, other = sorted(scene.clients, key=lambda client: client.name != first)
    client.proceed.clear()
    busy, _ = scene.begin(prompt=LONG_PROMPT + "busy")
    until(lambda: busy.progress.host == first)
    assert scene.ask(prompt=LONG_PROMPT + "more").host == other.name
    assert scene.observer.matches == ["none", "hit", "miss"]
    client.proceed.set()
    until(lambda: len(scene.observer.ended) == 3)
    assert scene.ask(prompt=LONG_PROMPT + "more still").host == other.name


def test_what_an_ollama_has_lost_is_known_no_more():
    """After an outage, or when it says that it had kept nothing."""
    scene = two()
    host = scene.ask(prompt=LONG_PROMPT).host
    client = next(client for client in scene.clients if client.name == host)
    client.error = OllamaUnavailable()
    scene.probed()
    client.error = None
    scene.probed()
    scene.ask(prompt=LONG_PROMPT)
    for client in scene.clients:
        client.completion = Completion("stop", 400, 2, cached_input_tokens=0)
    scene.ask(prompt=LONG_PROMPT)
    assert scene.observer.matches == ["none", "none", "hit"]


def test_a_single_one_is_not_chosen():
    """There is nothing to look up and nothing to count."""
    scene = Scene(Client("a"))
    scene.ask(prompt=LONG_PROMPT), scene.ask(prompt=LONG_PROMPT)
    assert scene.observer.matches == []
