"""``llama-api run``, which is ``make run``: what it serves, what it says, what it leaves."""

import os
import re
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack, contextmanager

import psutil
import pytest

from llama_api.commands.address import Address
from llama_api.commands.run import example, run
from tests.support.double import answer_for
from tests.support.gunicorn_server import ROOT, Server, free_port, new_prompt, until

STAND_IN = "smollm2:135m"


class Launched(Server):
    """The service as the launcher starts it, in a group of its own as a terminal does."""

    def spawn(self):
        with open(self.directory / "stdout", "ab") as out, open(self.directory / "stderr", "ab") as err:
            self.process = subprocess.Popen([sys.executable, "-m", "llama_api", "run"], cwd=ROOT, stdout=out,
                                            stderr=err, env=self.environment, start_new_session=True)

    def family(self):
        """The launcher or what it became, its workers and the stand-in."""
        master = psutil.Process(self.process.pid)
        return [master, *master.children(recursive=True)]


@contextmanager
def launched(directory, **settings):
    """A launcher that is killed at the end, with all of its family, if it still lives."""
    server = Launched(directory, settings)
    server.spawn()
    try:
        yield server
    finally:
        if server.process is not None:
            for process in server.family() if server.process.poll() is None else []:
                process.kill()
            server.process.wait()


def outcome(directory, **settings):
    """The exit status and all that was printed by a launcher that must not serve."""
    with launched(directory, **settings) as server:
        return server.process.wait(20), server.stdout, server.stderr


@pytest.fixture
def nothing():
    """The address of an Ollama that is not there."""
    return f"http://127.0.0.1:{free_port()}"


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory):
    """Three services with the embedded model behind them; starting them at once takes little longer than one."""
    pytest.importorskip("xllamacpp", reason="requirements-embedded.txt is not installed")
    with ExitStack() as stack:
        yield [stack.enter_context(launched(tmp_path_factory.mktemp("stand_in"), model="llama3:70b",
                                            ollama_url=f"http://127.0.0.1:{free_port()}")) for _ in range(3)]


@pytest.fixture
def stand_in(stand_ins):
    """One of them, which answers, for this test alone."""
    server = stand_ins.pop()
    until(server._answers)
    return server


def test_an_ollama_that_answers_is_served(tmp_path, double):
    """It says so and how to call it; the double gives the answer, and no other process is there."""
    with launched(tmp_path, ollama_url=double.url, bind=f"0.0.0.0:{free_port()}") as server:
        server.port = int(server.settings["bind"].rpartition(":")[2])
        until(server._answers)
        prompt = new_prompt()
        assert server.ask(prompt).text == answer_for(prompt)
        assert "Ollama answers; the model is llama3:8b." in server.stdout and "stand-in" not in server.stdout
        assert f"curl -s http://127.0.0.1:{server.port}/generate -H 'Content-Type: application/json'" in server.stdout
        assert not any("llama_api.embedded" in process.cmdline() for process in server.family())
        server.stop()
        assert "Traceback" not in server.stderr


def test_without_ollama_the_stand_in_answers_and_a_ctrl_c_ends_all(stand_in):
    """It generates real text under its own name, as the terminal says; SIGINT to the group ends it without a trace."""
    answer = stand_in.ask("The capital of France is", max_tokens=8).json
    assert answer["model"] == STAND_IN and re.search("[a-z]{3}", answer["response"])
    assert answer["metrics"]["output_tokens"] > 0 and stand_in.health()["model"] == STAND_IN
    for text in ("No Ollama answers", "stand-in", f"of {STAND_IN} and NOT of Llama 3", "`ollama pull llama3:70b`"):
        assert text in stand_in.stdout
    family = stand_in.family()
    assert sum("llama_api.embedded" in process.cmdline() for process in family) == 1
    os.killpg(stand_in.process.pid, signal.SIGINT)
    assert stand_in.process.wait(20) == 0
    until(lambda: not any(process.is_running() for process in family), 5)
    assert "Traceback" not in stand_in.stdout + stand_in.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_stand_in_ends_with_the_master(stand_in, number):
    """However that ended; after a SIGTERM it is there until what is under way is finished."""
    family = stand_in.family()
    with stand_in.open_ask("Tell me a story.", max_tokens=40, stream=True) as exchange:
        assert exchange.event()[1]["response"]
        stand_in.signal(number)
        if number == signal.SIGTERM:
            assert b'"finish_reason"' in exchange.read()
    assert stand_in.process.wait(20) == (0 if number == signal.SIGTERM else -number)
    until(lambda: not any(process.is_running() for process in family), 10)
    assert "Traceback" not in stand_in.stdout + stand_in.stderr


def test_a_ctrl_c_while_the_model_loads_leaves_nothing(tmp_path, nothing):
    """Neither a process nor a stack trace; the status is that of an interruption."""
    with launched(tmp_path, ollama_url=nothing) as server:
        family = until(lambda: server.family()[1:])
        os.killpg(server.process.pid, signal.SIGINT)
        assert server.process.wait(20) == 130
        until(lambda: not any(process.is_running() for process in family), 10)
        assert server.stderr == ""


def test_a_taken_port_is_a_sentence(tmp_path, double):
    """With the cure; nothing is started, and the status is 1."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        bind = "127.0.0.1:%d" % taken.getsockname()[1]
        status, out, err = outcome(tmp_path, ollama_url=double.url, bind=bind)
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert f"{bind} cannot be listened on (Address already in use)" in err and "LLAMA_API_BIND=127.0.0.1:8001" in err


def test_wrong_settings_are_all_told(tmp_path):
    """WEB_CONCURRENCY too, which gunicorn itself would answer with a stack trace."""
    status, out, err = outcome(tmp_path, timeout="soon", parallel="0", workers="abc")
    assert (status, out) == (1, "") and "Traceback" not in err
    for text in ("LLAMA_API_TIMEOUT='soon' must be", "LLAMA_API_PARALLEL='0' must be", "WEB_CONCURRENCY='abc' must be"):
        assert text in err


def test_a_stand_in_that_is_not_installed_is_a_sentence(tmp_path, nothing, monkeypatch):
    """The cures are to install it and to start Ollama."""
    (tmp_path / "xllamacpp.py").write_text("raise ImportError")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    status, out, err = outcome(tmp_path, ollama_url=nothing)
    assert status == 1 and "Traceback" not in err and "Serving" not in out
    assert "xllamacpp is not installed" in err and "`make clean setup`" in err and "`ollama serve`" in err


@pytest.mark.parametrize("address, call", [
    (Address("[::]:8000"), "curl -s http://[::1]:8000/generate -H 'Content-Type"),
    (Address("example:80"), "curl -s http://example:80/generate -H"),
    (Address("127.0.0.1:8443", tls=True), "curl -s -k https://127.0.0.1:8443/generate -H"),
    (Address("unix:a b.sock"), "curl -s --unix-socket 'a b.sock' http://localhost/generate -H")], ids=str)
def test_the_example_can_be_called(address, call):
    """Wherever it listens; a key is asked for."""
    assert example(address, False).startswith(call)
    assert "/generate -H 'Authorization: Bearer KEY' -H" in example(address, True)


def test_what_becomes_of_the_launcher(monkeypatch, capsys):
    """gunicorn, run by the same Python, and pointed at the stand-in where no Ollama answers."""
    for name in [name for name in os.environ if name.startswith(("LLAMA_API_", "WEB_CONCURRENCY"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("LLAMA_API_BIND", f"127.0.0.1:{free_port()}")
    monkeypatch.setenv("LLAMA_API_OLLAMA_URL", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("LLAMA_API_MODEL", "llama3:8b")
    became = []
    monkeypatch.setattr(os, "execv", lambda *arguments: became.append(arguments))
    code = "print('http://127.0.0.1:1 small:1 is ready')"
    popen = subprocess.Popen
    started = []

    def stand_in(command, **options):
        assert command[1:5] == ["-m", "llama_api.embedded", "--port", "0"]
        started.append(popen([sys.executable, "-c", code], **options))
        return started[-1]
    monkeypatch.setattr(subprocess, "Popen", stand_in)
    run.callback()
    with started[0]:
        pass
    program = [sys.executable, os.path.join(os.path.dirname(sys.executable), "gunicorn"),
               "-c", "python:llama_api.server.gunicorn_conf", "llama_api.wsgi:app"]
    assert became == [(sys.executable, program)]
    assert os.environ["LLAMA_API_OLLAMA_URL"] == "http://127.0.0.1:1" and os.environ["LLAMA_API_MODEL"] == STAND_IN
    code = "pass"
    with pytest.raises(SystemExit, match="`ollama serve`"):
        run.callback()
    with started[1]:
        pass
    assert "small:1 is ready" in capsys.readouterr().out
