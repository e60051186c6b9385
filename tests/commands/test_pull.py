"""``llama-api pull`` against doubles of Ollama: its progress, what is there already, and what goes wrong."""

import os
import re
import signal
import subprocess

import pytest

from tests.support.certificates import certify, server_context
from tests.support.commands import PATIENCE, run, screens, start, terminal
from tests.support.double import OllamaDouble
from tests.support.gunicorn_server import free_port
from tests.support.listening import Handler, listening

BIND = "127.0.0.1:8000"  # nothing is asked of the service
SIZE = "4.66 GB"


@pytest.fixture
def empty(double):
    """A double without the model."""
    double.remove_model("llama3:8b")
    return double


def pull(*doubles, **settings):
    """Pull at all ``doubles``."""
    return run(BIND, "pull", ollama_url=",".join(double.url for double in doubles), **settings)


def name(double):
    """The name of a double in the output."""
    return f"127.0.0.1:{double.port}"


def test_each_ollama_gets_the_model(empty):
    """One after the other, as it is called in the settings; one that has it says so just the same."""
    with OllamaDouble() as other:
        status, out, err = pull(empty, other)
        assert (status, err) == (0, "")
        for double in (empty, other):
            assert f"{name(double)}: pulling llama3:8b\n" in out and f"{name(double)}: llama3:8b is complete\n" in out
            assert double.calls("/api/pull")[-1].json["model"] == "llama3:8b"
    assert pull(empty)[0] == 0


def test_a_terminal_sees_bytes_rate_and_time_left(empty):
    """In a bar that only grows, whatever the layers."""
    empty.set(gap=0.01)
    with terminal() as (ours, theirs):
        with start(BIND, "pull", settings={"ollama_url": empty.url}, stdout=theirs, stderr=theirs) as process:
            os.close(theirs)
            screen = screens(ours)
            assert process.wait(PATIENCE) == 0
    shown = re.findall(rf"(\d+)%  ([\d.]+) [MG]B of {SIZE}  [\d.]+ [MG]B/s  \d:\d\d:\d\d left", screen)
    percents = [int(percent) for percent, _ in shown]
    assert len(set(percents)) > 3 and percents == sorted(percents) and f"{SIZE} of {SIZE}" in screen


@pytest.mark.parametrize("controls, model, words", [
    ({}, "nope", "cannot pull nope: pull model manifest: file does not exist"),
    ({"pull_fault": "error_line"}, "llama3:8b", "cannot pull llama3:8b: "),
    ({"pull_fault": "eof"}, "llama3:8b", "broke off while pulling llama3:8b; run it again to continue."),
    ({"pull_fault": "reset"}, "llama3:8b", "did not answer like an Ollama"),
    ({"pull_fault": "repeats_prompt"}, "llama3:8b", "cannot pull llama3:8b: ")], ids=str)
def test_what_ollama_said_is_told(empty, controls, model, words):
    """In a sentence on stderr, with the host; the status is 1."""
    empty.set(**controls)
    status, out, err = pull(empty, model=model)
    assert status == 1 and err.count("\n") == 1
    assert err.startswith(f"Error: {name(empty)} ") and words in err


@pytest.mark.parametrize("body, words", [
    (b'{"status": "pulling manifest"}\n{"error": "write /root/.ollama/models: no space left on device"}\n',
     "cannot pull llama3:8b: write /root/.ollama/models: no space left on device"),
    (b"<h1>It works!</h1>", "did not answer like an Ollama"), (b"[]\n", "did not answer like an Ollama"),
    (b'{"status": "pulling"}\n<', "broke off"), (b"", "broke off")], ids=["full", "page", "list", "garbage", "nothing"])
def test_what_comes_may_be_anything(answering, body, words):
    """Including a full disk there, which Ollama reports midway."""
    status, out, err = run(BIND, "pull", ollama_url=answering(body))
    assert status == 1 and err.count("\n") == 1 and words in err


@pytest.mark.parametrize("settings", [{}, {"REQUESTS_CA_BUNDLE": "/nonexistent"}], ids=str)
def test_without_trust_nothing_is_pulled(tmp_path, settings):
    """The message has the same cure as the service's."""
    with listening(Handler, server_context(*certify(tmp_path))) as server:
        status, out, err = run(BIND, "pull", ollama_url=f"https://127.0.0.1:{server.server_port}", **settings)
    assert status == 1 and err.count("\n") == 1 and "REQUESTS_CA_BUNDLE" in err


def test_one_that_fails_does_not_keep_the_others_waiting(empty):
    """It is reported, the next one gets the model, and the status is 1."""
    away = free_port()
    status, out, err = run(BIND, "pull", ollama_url=f"http://127.0.0.1:{away},{empty.url}")
    assert status == 1 and f"{name(empty)}: llama3:8b is complete" in out
    assert err == (f"Error: No server answers at 127.0.0.1:{away}; start Ollama there with `ollama serve`, or correct"
                   " LLAMA_API_OLLAMA_URL.\n")


def test_ctrl_c_ends_the_pull(empty):
    """The message says how to continue, the status is that of an interruption, and Ollama's pull ends."""
    empty.set(gap=0.5)
    with start(BIND, "pull", settings={"ollama_url": empty.url}, stdout=subprocess.PIPE,
               stderr=subprocess.PIPE) as process:
        empty.wait(PATIENCE, connections=1)
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, err) == (130, b"Interrupted; run it again to continue.\n")
    empty.wait(PATIENCE, closed_early=1)


def test_wrong_settings_are_told(double):
    """Before anything is pulled."""
    status, out, err = pull(double, timeout="soon")
    assert (status, out) == (1, "") and "LLAMA_API_TIMEOUT='soon' must be" in err and not double.calls("/api/pull")
