"""``llama-api ask`` as one types it: into a pipe, on a terminal, interrupted, and when it fails."""

import os
import signal
import subprocess

import pytest

from tests.support.certificates import certify
from tests.support.commands import PATIENCE, run, screens, start, terminal
from tests.support.double import answer_for
from tests.support.gunicorn_server import free_port, new_prompt, until


@pytest.mark.parametrize("program", [("llama_api",), ("flask", "--app", "wsgi")], ids=["llama-api", "flask"])
def test_the_answer_alone_is_printed(api, double, program):
    """The output is the answer, byte for byte; the second time it is the stored one."""
    prompt = new_prompt("ünd 漢字")
    for _ in range(2):
        assert run(api.settings["bind"], "ask", prompt, program=program) == (0, answer_for(prompt), "")
    assert double.generations[prompt] == 1


def test_the_options_are_fields_of_the_request(api, double):
    """Each reaches Ollama; what is not given is left to the service."""
    prompt = new_prompt()
    options = ["--max-tokens", 3, "--temperature", 0, "--seed", 7, "--system", "Be brief.", "--model", "LLAMA3:8b"]
    assert run(api.settings["bind"], "ask", *options, prompt)[0] == 0
    sent = double.calls("/api/generate")[-1].json
    assert (sent["system"], sent["model"]) == ("Be brief.", "llama3:8b")
    assert {"num_predict": 3, "temperature": 0, "seed": 7}.items() <= sent["options"].items()


def test_without_a_prompt_it_asks_for_one(api):
    """In one sentence."""
    status, out, err = run(api.settings["bind"], "ask", "--seed", 7)
    assert (status, out) == (1, "") and err.startswith("Error: Give a prompt, ") and err.count("\n") == 1


def test_a_dash_reads_standard_input(api, double):
    """All of it, as it is; what is not UTF-8 is a sentence, and an output that is ASCII gets UTF-8 all the same."""
    prompt = new_prompt("ünd\n漢字")
    told = run(api.settings["bind"], "ask", "-", text=prompt.encode(), PYTHONIOENCODING="ascii")
    assert told == (0, answer_for(prompt), "")
    status, out, err = run(api.settings["bind"], "ask", "-", text=b"caf\xe9")
    assert (status, out) == (1, "") and "not UTF-8" in err and "byte 3" in err


def test_pieces_are_printed_as_they_come(api, double):
    """The first is there while the rest is not yet written."""
    with start(api.settings["bind"], "ask", new_prompt("[[gap=30]]"), stdout=subprocess.PIPE) as process:
        first = process.stdout.read(1)
        assert first and double.running == 1
        process.kill()
    double.wait(PATIENCE, running=0)


@pytest.fixture(scope="module")
def narrow(shared_double, shared_serve):
    """A server with one slot that reports a wait every quarter of a second."""
    return shared_serve(shared_double, heartbeat=0.25)


def test_a_terminal_sees_the_wait_and_then_the_answer(narrow, double):
    """The number of callers in front, updated in place; it is erased before the answer, which ends with a newline."""
    slow, prompt = new_prompt("[[ttft=60]]"), new_prompt()
    with narrow.open_ask(slow) as first, terminal() as (ours, theirs):
        until(lambda: double.running == 1)
        with start(narrow.settings["bind"], "ask", prompt, stdout=theirs, stderr=theirs) as process:
            os.close(theirs)
            seen = b""
            while b"0 before you" not in seen:
                seen += os.read(ours, 4096)
            first.close()
            lines = (seen.decode() + screens(ours)).split("\n")
            assert process.wait(PATIENCE) == 0
    assert lines[-2:] == [answer_for(prompt), ""]


def test_a_pipe_hears_nothing_of_the_wait(narrow, double):
    """stderr is empty if it is not a terminal, even if the wait was reported many times."""
    prompt = new_prompt("[[ttft=1]]")
    assert run(narrow.settings["bind"], "ask", prompt) == (0, answer_for(prompt), "")


def test_a_pause_in_the_answer_does_not_wipe_it_away(narrow, double):
    """A report of a wait between two pieces does not overwrite the line of the answer."""
    prompt = new_prompt("[[gap=0.6]] [[tokens=4]]")
    with terminal() as (ours, theirs):
        with start(narrow.settings["bind"], "ask", prompt, stdout=theirs, stderr=theirs) as process:
            os.close(theirs)
            lines = [line for line in screens(ours).split("\n") if not line.startswith("waiting")]
            assert process.wait(PATIENCE) == 0
    assert [line for line in lines if line] == [answer_for(prompt)]


@pytest.mark.parametrize("markers", ["[[ttft=60]]", "[[gap=60]]"], ids=["before", "midway"])
def test_ctrl_c_ends_the_generation_too(api, double, markers):
    """The status is that of an interruption, nothing is said, and Ollama stops."""
    with start(api.settings["bind"], "ask", new_prompt(markers), stdout=subprocess.PIPE,
               stderr=subprocess.PIPE) as process:
        until(lambda: double.running == 1, PATIENCE)
        if "gap" in markers:
            assert process.stdout.read(1)
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, err) == (130, b"")
    double.wait(PATIENCE, running=0, closed_early=1)


def test_a_reader_that_has_enough_ends_it(api, double):
    """As in a pipe to head: no traceback, and Ollama stops."""
    with start(api.settings["bind"], "ask", new_prompt("[[gap=0.5]] [[tokens=90]]"), stdout=subprocess.PIPE,
               stderr=subprocess.PIPE) as process:
        assert process.stdout.read(1)
        process.stdout.close()
        assert process.wait(PATIENCE) == 1
        assert b"Traceback" not in process.stderr.read()
    double.wait(PATIENCE, running=0)


@pytest.mark.parametrize("arguments, words", [
    ([" "], ["422", "prompt: "]), (["x", "--max-tokens", "0"], ["422", "max_tokens: "]),
    (["x", "--model", "nope"], ["model: ", "llama3:8b"]), (["x [[fault=error_array]]"], ["502", "Ollama"]),
    (["x [[fault=eof]]"], ["Ollama broke off"])], ids=str)
def test_a_problem_is_a_sentence(api, double, arguments, words):
    """The service's message, on stderr; the status is 1."""
    status, out, err = run(api.settings["bind"], "ask", *arguments)
    assert status == 1 and err.startswith("Error: ") and err.count("\n") == 1
    assert all(word in err for word in words), err


def test_an_option_that_is_not_a_number_is_a_sentence(api):
    """The message is click's."""
    status, out, err = run(api.settings["bind"], "ask", "x", "--max-tokens", "many")
    assert (status, out) == (2, "") and "'many' is not a valid integer" in err


def test_a_server_that_is_down_is_a_sentence():
    """The message says where no service answers, and what to do."""
    port = free_port()
    status, out, err = run(f"127.0.0.1:{port}", "ask", "x")
    assert (status, out) == (1, "")
    assert err == (f"Error: No server answers at http://127.0.0.1:{port}; start it, or set LLAMA_API_BIND to its"
                   " address.\n")


def test_another_server_is_a_sentence(double):
    """An Ollama is not this service."""
    status, out, err = run(double.url.removeprefix("http://"), "ask", "x")
    assert (status, out) == (1, "") and "is not llama_api; set LLAMA_API_BIND" in err


def test_a_server_that_dies_midway_leaves_a_part(shared_serve, double):
    """The part that arrived is printed, and reported as incomplete."""
    api = shared_serve(double)
    with start(api.settings["bind"], "ask", new_prompt("[[gap=60]]"), stdout=subprocess.PIPE,
               stderr=subprocess.PIPE) as process:
        assert process.stdout.read(1)
        api.kill()
        out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert err.decode() == ("Error: The server broke off before the answer was complete; only a part was printed.\n")


def test_a_key_is_sent_and_its_lack_told(shared_serve, double):
    """From the variable that the server has it from; a wrong one and none have the same cure."""
    api, prompt = shared_serve(double, api_keys="sesame"), new_prompt()
    assert run(api.settings["bind"], "ask", prompt, api_keys="sesame") == (0, answer_for(prompt), "")
    for wrong in ({}, {"api_keys": "other"}):
        status, out, err = run(api.settings["bind"], "ask", prompt, **wrong)
        assert (status, out) == (1, "") and "set LLAMA_API_API_KEYS" in err


def test_a_unix_socket_and_several_workers_are_called_as_any(serve, double, tmp_path):
    """The path is that of the setting; nothing else differs."""
    path = tmp_path / "llama.sock"
    api, prompt = serve(double, start=False, bind=f"unix:{path}", workers=2, api_keys="sesame"), new_prompt()
    api.spawn()
    until(lambda: path.exists() and api.stderr.count("Booting worker") == 2, PATIENCE)
    assert run(f"unix:{path}", "ask", prompt, api_keys="sesame") == (0, answer_for(prompt), "")
    assert "entries" in run(f"unix:{path}", "cache", "stats", api_keys="sesame")[1]
    status, out, err = run(f"unix:{path}.not", "ask", prompt)
    assert (status, out) == (1, "") and f"No server answers at {path}.not" in err


@pytest.fixture(scope="module")
def secure(shared_double, shared_serve, tmp_path_factory):
    """A server that speaks TLS, its certificate and its key."""
    certificate, key = certify(tmp_path_factory.mktemp("tls"))
    api = shared_serve(shared_double, start=False)
    api.arguments = ["--certfile", certificate, "--keyfile", key]
    api.spawn()
    until(lambda: "Booting worker" in api.stderr, PATIENCE)
    return api, certificate, key


@pytest.mark.parametrize("told", [True, False], ids=["told by GUNICORN_CMD_ARGS", "found out"])
def test_tls_is_spoken_where_the_server_does(secure, told):
    """With a self-signed certificate, which is accepted on loopback."""
    (api, certificate, key), prompt = secure, new_prompt()
    settings = {"GUNICORN_CMD_ARGS": f"--certfile {certificate} --keyfile {key}"} if told else {}
    assert run(api.settings["bind"], "ask", prompt, **settings) == (0, answer_for(prompt), "")


def test_a_certificate_of_another_host_must_be_trusted(secure, tmp_path):
    """REQUESTS_CA_BUNDLE names the trusted ones; a missing setting or file is reported."""
    (api, certificate, _), prompt = secure, new_prompt()
    bind = f"LOCALHOST:{api.port}"  # in capitals it is a name like any other
    status, out, err = run(bind, "ask", prompt)
    assert (status, out) == (1, "") and "is not trusted; set REQUESTS_CA_BUNDLE" in err
    status, out, err = run(bind, "ask", prompt, REQUESTS_CA_BUNDLE=tmp_path / "nowhere.pem")
    assert (status, out) == (1, "") and "nowhere.pem cannot be read" in err
    assert run(bind, "ask", prompt, REQUESTS_CA_BUNDLE=certificate) == (0, answer_for(prompt), "")
