"""``llama-api doctor`` in healthy and broken set-ups: what each line says, and that nothing is changed."""

import json
import os
import re
import signal
import socket
import sqlite3
from contextlib import closing

import pytest

from tests.support.certificates import certify, server_context
from tests.support.commands import PATIENCE, run
from tests.support.double import OllamaDouble
from tests.support.gunicorn_server import free_port, new_prompt, until
from tests.support.listening import Handler, listening

OLLAMA, LOG = "127.0.0.1:{}".format, "log file"


def doctor(bind=None, **settings):
    """Run it, by default where no service runs; its exit status, and the level, subject and text of each line."""
    status, out, err = run(bind or f"127.0.0.1:{free_port()}", "doctor", **settings)
    found = [(line[:8].rstrip(), line[9:31].rstrip(), line[32:]) for line in out.splitlines()]
    assert err == "" and {level for level, _, _ in found} <= {"ok", "warning", "fault"}, out + err
    assert all(subject and len(text) >= 10 for _, subject, text in found), out
    assert status == any(level == "fault" for level, _, _ in found)
    return status, found


def told(found, subject, *words):
    """The level of the one line on ``subject`` that has all ``words``."""
    lines = [(level, text) for level, about, text in found if about == subject]
    levels = [level for level, text in lines if all(word in text for word in words)]
    assert len(levels) == 1, (subject, words, lines)
    return levels[0]


def troubles(found):
    """The lines that are not ``ok``."""
    return [line for line in found if line[0] != "ok"]


def test_a_healthy_service_has_a_line_for_each_check(api, double):
    """With the service running; each is well."""
    api.ask(new_prompt())
    double.set(slots=2)
    status, found = doctor(api.settings["bind"], ollama_url=double.url, parallel=2, num_ctx=8192,
                           log_file=api.log_path)
    host = OLLAMA(double.port)
    assert [text for level, subject, text in found if level != "ok" and subject != "its settings"] == [] and status == 0
    for subject, words in (("settings", "valid"), (LOG, "written"), ("port", "the service runs at"),
                           ("service", "healthy"), (host, "version 0.33.0"), (host, "has llama3:8b, build "),
                           (host, "all of it on the GPU"), (host, "NUM_CTX=8192 fits"), ("builds", "1 of 1"),
                           ("shared store", "none is set"), (host, "generated a token in "),
                           (host, "runs 2 generations at once")):
        assert told(found, subject, words) == "ok"


def test_without_the_service_it_works_as_well(double, tmp_path):
    """A stopped service is no fault; neither the log nor the store is created."""
    status, found = doctor(ollama_url=double.url, log_file=tmp_path / "new.log", cache_url=f"sqlite:///{tmp_path}/c.db")
    assert (status, troubles(found)) == (0, [])
    assert told(found, "port", "is free", "`llama-api run`") == told(found, "shared store", "does not exist") == "ok"
    assert told(found, OLLAMA(double.port), "the model is not loaded", "LLAMA_API_PRELOAD=true") == "ok"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("break_it, level, words", [
    (lambda double: double.stop(), "fault", ["nothing accepts connections", "`ollama serve`"]),
    (lambda double: double.set(version_fault="hang"), "fault", ["does not answer in time", "restart it"]),
    (lambda double: double.set(tags_fault="html_200"), "fault", ["Ollama", "check"]),
    (lambda double: double.remove_model("llama3:8b"), "fault", ["does not have llama3:8b", "`llama-api pull`"]),
    (lambda double: double.set(version="0.12.5"), "warning", ["silently truncates prompts", "0.12.6 or later"]),
    (lambda double: double.set_model("llama3:8b", gpu_percent=50, loaded=True), "warning", ["only 50 %", "smaller"]),
    (lambda double: double.set_model("llama3:8b", gpu_percent=0, loaded=True), "warning", ["CPU only", "says why"]),
    (lambda double: double.set_model("llama3:8b", context_length=2048), "warning", ["NUM_CTX=4096", "2048 or less"]),
    (lambda double: double.set(num_ctx=8192) and double.set_model("llama3:8b", loaded=True), "warning",
     ["window of 8192", "NUM_CTX=4096"]),
    (lambda double: double.set(slots=1, gap=0.05), "warning", ["ran 1 of 2", "OLLAMA_NUM_PARALLEL=2"]),
    (lambda double: double.fail("oom"), "fault", ["cannot generate", "Ollama answered"])],
    ids=["away", "hangs", "not ollama", "no model", "old", "half on the CPU", "all on the CPU", "window too long",
         "other window", "one at a time", "cannot generate"])
def test_what_is_wrong_with_an_ollama_is_told(double, break_it, level, words):
    """In one line that has the cure; the others are well."""
    double.set(slots=2, gap=0.02, num_ctx=4096)
    break_it(double)
    status, found = doctor(ollama_url=double.url, parallel=2, num_ctx=4096)
    double.start()
    assert told(found, OLLAMA(double.port), *words) == level
    assert len(troubles(found)) == 1 and status == (level == "fault")


def test_one_whose_certificate_is_not_trusted_is_a_fault(tmp_path):
    """It is distinguished from one that is down."""
    with listening(Handler, server_context(*certify(tmp_path))) as server:
        _, found = doctor(ollama_url=f"https://127.0.0.1:{server.server_port}")
    assert told(found, OLLAMA(server.server_port), "REQUESTS_CA_BUNDLE") == "fault"


def test_a_stub_of_a_cloud_model_is_a_fault(double):
    """For MODEL; and what further models there are of that kind is a warning."""
    for name in ("llama3:8b", "more:1b"):
        double.set_model(name, remote_host="https://ollama.example")
    status, found = doctor(ollama_url=double.url, models="more:1b")
    assert told(found, OLLAMA(double.port), "llama3:8b only as a cloud model", "`ollama pull llama3:8b`") == "fault"
    assert told(found, OLLAMA(double.port), "more:1b only as a cloud model") == "warning" and status == 1


def test_a_further_model_that_is_missing_is_a_warning(double):
    """The service uses the others."""
    status, found = doctor(ollama_url=double.url, models="mistral,*")
    assert told(found, OLLAMA(double.port), "mistral of LLAMA_API_MODELS", "`ollama pull mistral`") == "warning"
    assert status == 0


def test_each_of_several_ollamas_is_looked_at(double):
    """One that is away, and two of which one has another build."""
    with OllamaDouble() as other:
        away = free_port()
        other.set_digest("llama3:8b")
        status, found = doctor(ollama_url=f"{double.url},{other.url}*2,http://127.0.0.1:{away}")
    assert status == 1 and told(found, OLLAMA(away), "nothing accepts connections") == "fault"
    assert told(found, "builds", "not the same everywhere", OLLAMA(double.port), OLLAMA(other.port), "pull") == "fault"
    assert told(found, OLLAMA(other.port), "runs 2 generations at once") in ("ok", "warning")


def test_what_all_generations_wait_for_is_none_of_them(answering):
    """A wait that is the same for all, and longer than the generation, hides no slot."""
    second, model = 10 ** 9, {"name": "llama3:8b", "digest": "ab" * 32}
    url = answering(json.dumps({
        "version": "0.33.0", "models": [model], "response": "Hi", "done": True, "done_reason": "stop",
        "total_duration": 3 * second, "eval_count": 8, "eval_duration": second}).encode())
    _, found = doctor(ollama_url=url, parallel=4)
    assert told(found, url.removeprefix("http://"), "runs 4 generations at once") == "ok"


def test_wrong_settings_are_all_told():
    """Each in a line, secrets masked; a misspelled one is a warning."""
    status, found = doctor(timeout="soon", paralel=2, ollama_url="ftp://me:secret@x", WEB_CONCURRENCY="many")
    assert status == 1 and all("secret" not in text for _, _, text in found)
    for name in ("LLAMA_API_TIMEOUT='soon' must be", "LLAMA_API_OLLAMA_URL=", "WEB_CONCURRENCY='many' must be"):
        assert told(found, "settings", name) == "fault"
    assert told(doctor(paralel=2, ollama_url=f"http://127.0.0.1:{free_port()}")[1], "settings",
                "LLAMA_API_PARALEL is not a setting") == "warning"


@pytest.mark.parametrize("path, words", [
    ("", "is a directory"), ("nowhere/api.log", "does not exist")], ids=["directory", "no directory"])
def test_a_log_that_cannot_be_written_is_a_warning(double, tmp_path, path, words):
    """The service runs without it."""
    status, found = doctor(ollama_url=double.url, log_file=tmp_path / path)
    assert told(found, LOG, words, "LLAMA_API_LOG_FILE", "stdout alone") == "warning" and status == 0


def test_a_port_that_something_else_has_is_a_fault(double, answering):
    """A port that something else answers, one that is silent, and an address of another machine."""
    for bind in (OLLAMA(double.port), answering(b"<h1>It works!</h1>").removeprefix("http://")):
        assert told(doctor(bind, ollama_url=double.url)[1], "port", "not llama_api", "LLAMA_API_BIND") == "fault"
    with socket.create_server(("127.0.0.1", 0)) as silent:
        bind = OLLAMA(silent.getsockname()[1])
        assert told(doctor(bind, ollama_url=double.url)[1], "port", "does not answer", "LLAMA_API_BIND") == "fault"
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        bind = OLLAMA(bound.getsockname()[1])
        assert told(doctor(bind, ollama_url=double.url)[1], "port", "already in use", "`ss -ltnp`") == "fault"


def test_a_service_that_hangs_is_a_fault(serve, double):
    """The kernel accepts connections for it, but they are not answered."""
    api = serve(double)
    pids = [api.process.pid, *api.workers]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    status, found = doctor(api.settings["bind"], ollama_url=double.url)
    for pid in pids:
        os.kill(pid, signal.SIGCONT)
    assert told(found, "port", "does not answer", "restart it") == "fault"


def test_what_the_service_says_of_itself_is_told(serve, double):
    """An unhealthy one, with its reason; and settings that are not those of this environment."""
    api = serve(double, queue=7)
    double.remove_model("llama3:8b")
    until(lambda: api.health()["status"] == "unhealthy")
    status, found = doctor(api.settings["bind"], ollama_url=double.url, queue=8, log_file=api.log_path)
    assert told(found, "service", "unhealthy", "ollama pull llama3:8b") == "fault"
    assert told(found, "its settings", "LLAMA_API_QUEUE=7 and not 8") == "warning"


def test_a_wrong_key_is_told(serve, double):
    """By its cure; with the right one the settings are compared, and no key is shown."""
    api = serve(double, api_keys="sesame")
    here = {"ollama_url": double.url, "log_file": api.log_path}
    for wrong in ({}, {"api_keys": "other"}):
        status, found = doctor(api.settings["bind"], **here, **wrong)
        assert told(found, "its settings", "requires an API key", "LLAMA_API_API_KEYS") == "warning" and status == 0
    status, found = doctor(api.settings["bind"], **here, api_keys="sesame")
    assert (status, troubles(found)) == (0, []) and told(found, "its settings", "are those of this environment") == "ok"
    assert all("sesame" not in text for _, _, text in found)


def test_tls_workers_and_a_unix_socket_are_found(serve, double, tmp_path):
    """The service runs, by whatever way it is called."""
    certificate, key = certify(tmp_path)
    secure, local = serve(double, start=False, workers=2), serve(double, start=False, bind=f"unix:{tmp_path}/l.sock")
    secure.arguments = ["--certfile", certificate, "--keyfile", key]
    for api, place in ((secure, f"https://{secure.settings['bind']}"), (local, f"{tmp_path}/l.sock")):
        api.spawn()
        until(lambda api=api: "Booting worker" in api.stderr, PATIENCE)
        found = until(lambda api=api: _running(api, double), PATIENCE)
        assert told(found, "port", f"the service runs at {place}") == "ok"


def test_what_the_service_has_under_way_is_not_disturbed(serve, double):
    """PARALLEL is not tested while generations run: the result would be wrong."""
    api = serve(double, parallel=2)
    double.set(slots=2)
    with api.open_ask(new_prompt("[[ttft=60]]"), timeout=PATIENCE):
        double.wait(running=1)
        found = doctor(api.settings["bind"], ollama_url=double.url, parallel=2)[1]
    assert told(found, OLLAMA(double.port), "can be tried while the service does not generate") == "ok"


def test_a_shared_store_is_measured_and_left_as_it_was(serve, double, tmp_path):
    """The report has its content and its round trip; a damaged or foreign file stays where it is."""
    path = tmp_path / "answers.db"
    api = serve(double, cache_url=f"sqlite:///{path}")
    api.ask(new_prompt())
    until(lambda: api.get("/cache").json["entries"] == 1)
    status, found = doctor(ollama_url=double.url, cache_url=f"sqlite:///{path}")
    assert told(found, "shared store", "sqlite holds 1 answers", "a round trip takes ") == "ok"
    foreign, damaged = tmp_path / "foreign.db", tmp_path / "damaged.db"
    with closing(sqlite3.connect(foreign)) as db:
        db.execute("CREATE TABLE theirs (x)")
    damaged.write_bytes(b"no database" * 100)
    for file in (foreign, damaged):
        before = sorted(tmp_path.iterdir()), file.read_bytes()
        status, found = doctor(ollama_url=double.url, cache_url=f"sqlite:///{file}")
        assert told(found, "shared store", "cannot be used", "LLAMA_API_CACHE_URL") == "fault" and status == 1
        assert (sorted(tmp_path.iterdir()), file.read_bytes()) == before


def test_a_redis_is_looked_at(double, redis_server):
    """There, and away: then the cure is to start it; no password is shown."""
    found = doctor(ollama_url=double.url, cache_url=redis_server.url)[1]
    assert told(found, "shared store", "redis holds 0 answers", "a round trip takes ") == "ok"
    redis_server.kill()
    away = redis_server.url.replace("redis://", "redis://:secret@")
    status, found = doctor(ollama_url=double.url, cache_url=away)
    assert told(found, "shared store", "cannot be used", "start it") == "fault" and status == 1
    assert not re.search("secret", str(found))


def _running(api, double):
    """The findings, once the service answers."""
    found = doctor(api.settings["bind"], ollama_url=double.url)[1]
    return found if any(subject == "service" for _, subject, _ in found) else None
