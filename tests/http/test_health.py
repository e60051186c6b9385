"""Health from outside: what each endpoint looks at, how soon it knows, that it never waits."""

import fcntl
import hashlib
import sqlite3
import time
from contextlib import closing, contextmanager

import pytest

from tests.support.gunicorn_server import new_prompt, together, until

FRESH = 2.0  # seconds that a probe may be old, and then another takes its time
LONGEST = 1.5  # seconds that none of them may block


@pytest.fixture(scope="module")
def server(shared_double, shared_serve):
    return shared_serve(shared_double, timeout=20)


@pytest.fixture
def api(server, double):
    until(lambda: server.health()["status"] == "healthy", 5)
    return server


def test_a_healthy_service_says_so(api, double):
    """The bodies of the contract, to the field."""
    api.request("DELETE", "/cache")
    for _ in range(3):
        api.ask(new_prompt())
    until(lambda: api.health()["hosts"][0]["loaded"])
    assert [(reply.status, reply.json) for reply in map(api.get, ("/livez", "/readyz", "/health"))] == [
        (200, {"status": "alive"}), (200, {"status": "ready"}),
        (200, {"status": "healthy", "cache_size": 3, "model": "llama3:8b",
               "ollama": {"reachable": True, "version": "0.33.0", "model_present": True},
               "queue": {"running": 0, "waiting": 0, "slots": 1, "limit": 64}, "hosts": [
                   {"host": f"127.0.0.1:{double.port}", "usable": True, "reachable": True, "version": "0.33.0",
                    "model_present": True, "loaded": True, "gpu_percent": 100, "context_length": 8192,
                    "digest": hashlib.sha256(b"llama3").hexdigest()[:12], "running": 0, "slots": 1, "reason": None}]})]


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/health"])
def test_health_is_json_and_takes_head(api, path):
    """HEAD gives the status of GET and no body; the answer is not cacheable."""
    reply = api.request("HEAD", path)
    assert (reply.status, reply.body) == (200, b"")
    assert reply.headers["Content-Type"] == api.get(path).headers["Content-Type"] == "application/json"


TROUBLES = {
    "stopped": (lambda double: double.stop(), False, False), "hanging": (
        lambda double: double.set(tags_fault="hang", version_fault="hang"), False, False),
    "without the model": (lambda double: double.remove_model("llama3:8b"), True, False)}


@pytest.mark.parametrize("trouble", TROUBLES)
def test_trouble_with_ollama_is_told_with_its_reason(api, double, trouble):
    """503 by readyz and health within the age of a probe, with a reason; livez does not care; then all is well."""
    bring, reachable, present = TROUBLES[trouble]
    bring(double)
    try:
        until(lambda: api.get("/health").status == 503, FRESH + LONGEST)
        replies = {path: api.get(path) for path in ("/livez", "/readyz", "/health")}
        assert replies["/livez"].json == {"status": "alive"} and replies["/livez"].status == 200
        ready, health = replies["/readyz"].json, replies["/health"].json
        assert not reachable or all("ollama pull llama3:8b" in body["reason"] for body in (ready, health))
        assert replies["/readyz"].status == 503 and ready["status"] == "not ready" and ready["reason"]
        assert health["status"] == "unhealthy" and health["reason"]
        assert health["ollama"]["model_present"] is present and health["ollama"]["reachable"] is reachable
        assert {"cache_size", "model", "queue"} <= health.keys()
        assert max(reply.seconds for reply in replies.values()) < LONGEST
        assert api.request("HEAD", "/readyz").status == api.request("HEAD", "/health").status == 503
        assert api.metrics()["ollama_up", f"127.0.0.1:{double.port}"] == reachable
    finally:
        double.start()
        double.reset()
    until(lambda: api.get("/readyz").status == 200, FRESH + LONGEST)
    assert api.get("/health").status == 200


def test_an_ollama_that_cuts_prompts_is_told_of_with_its_cure(api, double):
    """Degraded, as it still serves: in /health, and once in the log, until Ollama is updated."""
    double.set(version="0.12.5")
    until(lambda: api.health()["ollama"]["version"] == "0.12.5")
    reply = api.get("/health")
    assert (reply.status, reply.json["status"], reply.json["hosts"][0]["usable"]) == (200, "degraded", True)
    assert reply.json["reason"] == reply.json["hosts"][0]["reason"]
    assert "truncates prompts" in reply.json["reason"] and "update it to 0.12.6 or later" in reply.json["reason"]
    assert api.get("/readyz").status == 200
    double.set(version="0.12.6")
    until(lambda: api.health()["status"] == "healthy")
    warned, = [record for record in api.records if "0.12.5" in record["message"]]
    assert warned["level"] == "WARNING" and "update it to 0.12.6 or later" in warned["message"]


def test_all_callers_share_a_probe(api, double):
    """However many ask, Ollama is asked at most about once a second, and never to generate."""
    before, started = len(double.calls("/api/tags")), time.monotonic()
    for _ in range(3):
        together(20, lambda n: api.get(("/readyz", "/health")[n % 2]))
    probes = len(double.calls("/api/tags")) - before
    assert probes <= time.monotonic() - started + 2 and not double.calls("/api/generate")


def test_health_never_waits_behind_a_generation(api, double):
    """With the slot taken, others waiting, and Ollama slow to list its models, all three answer."""
    clients = [api.open_ask(new_prompt("[[ttft=30]]")) for _ in range(4)]
    until(lambda: api.health()["queue"] == {"running": 1, "waiting": 3, "slots": 1, "limit": 64})
    for path in ("/livez", "/readyz", "/health"):
        reply = api.get(path)
        assert reply.status == 200 and reply.seconds < LONGEST
    assert api.health()["status"] == "healthy"
    for client in clients:
        client.close()
    double.wait(running=0)


@contextmanager
def locked(path):
    """Hold the lock that every write to the store needs."""
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield


@contextmanager
def stalled(path):
    """Have the disk of the store not come to an end."""
    with open(f"{path}.stalled", "a") as disk:
        fcntl.flock(disk, fcntl.LOCK_EX)
        yield


@pytest.mark.parametrize("trouble", [locked, stalled])
def test_livez_answers_many_times_while_the_store_waits(double, serve, tmp_path, trouble):
    """For another process's write, or for the disk; waiting requests continue afterwards as if nothing had been."""
    api = serve(double, start=False, cache_url=f"sqlite:///{tmp_path}/answers.db")
    api.application = "tests.support.slow_disk:app"
    api.start().ask(new_prompt())
    prompt = new_prompt()
    with trouble(tmp_path / "answers.db"):
        asked = api.open_ask(prompt)
        for _ in range(50):
            assert api.get("/livez").json == {"status": "alive"}
        assert double.generations[prompt] == 0
    with asked:
        assert (asked.head.status, asked.head.headers["Cache-Status"]) == (200, "llama-api; fwd=miss; stored")


def test_the_first_probe_of_a_hanging_ollama_blocks_nobody(double, serve):
    """A service that has never seen Ollama answers in time too, and the start does not depend on it."""
    double.set(tags_fault="hang", version_fault="html_200")
    api = serve(double)
    for path, status in (("/livez", 200), ("/readyz", 503), ("/health", 503)):
        reply = api.get(path)
        assert reply.status == status and reply.seconds < LONGEST
    double.reset()
    until(lambda: api.get("/readyz").status == 200, FRESH + LONGEST)
