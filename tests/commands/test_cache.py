"""``flask --app wsgi cache stats|clear|warm`` as an operator runs it, on a terminal too; here where that will do."""

import json
import os
import re
import signal
import subprocess
from contextlib import contextmanager

import pytest
from click.testing import CliRunner

from llama_api.commands import cli
from tests.support import commands
from tests.support.commands import PATIENCE
from tests.support.gunicorn_server import free_port, new_prompt, until
from tests.support.listening import Handler, listening


@pytest.fixture
def prompts(double, api):
    """Three new prompts; the cache is empty, and the double has recorded no call."""
    assert api.request("DELETE", "/cache").status == 204
    return [new_prompt() for _ in range(3)]


def start(bind, *arguments, **options):
    """Start a command, by way of flask."""
    return commands.start(bind, "cache", *arguments, program=("flask", "--app", "wsgi"), **options)


def run(bind, *arguments, **settings):
    """Run a command to its end, by way of flask."""
    return commands.run(bind, "cache", *arguments, program=("flask", "--app", "wsgi"), **settings)


def run_here(bind, *arguments, text=b"", **settings):
    """Run a command in this process, which is quicker; returns the same."""
    clean = {name: None for name in os.environ if name.startswith(("LLAMA_API_", "WEB_CONCURRENCY"))}
    wanted = {name: value for name, value in commands.environment(bind, **settings).items()
              if name.startswith(("LLAMA_API_", "WEB_CONCURRENCY"))}
    result = CliRunner().invoke(cli, ["cache", *map(str, arguments)], input=text, env={**clean, **wanted})
    assert isinstance(result.exception, SystemExit | None), result.exception
    return result.exit_code, result.stdout, result.stderr


def warm(api, *lines, how=run_here, **settings):
    """Warm with ``lines`` from standard input."""
    text = b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines)
    return how(api.settings["bind"], "warm", "-", text=text, **settings)


def summary(out):
    """The figures of the last line: lines, generated, cached, failed, left."""
    return [int(number) for number in re.findall(r"\d+", out.splitlines()[-1].partition(";")[0])]


def lines_of(err):
    """The reported faults, by the number of their line."""
    return {int(number): text for number, text in re.findall(r"^line (\d+): (.*)$", err, re.M)}


def test_stats_are_the_figures_of_the_endpoint(api, prompts):
    """The same names and values as GET /cache."""
    api.ask(prompts[0])
    api.ask(prompts[0])
    status, out, err = run(api.settings["bind"], "stats")
    told = dict(line.split() for line in out.splitlines())
    assert (status, err) == (0, "") and told == {name: str(value) for name, value in api.get("/cache").json.items()}
    assert told["entries"] == "1" and int(told["hits"]) >= 1


def test_clear_empties_the_cache(api, prompts):
    """The next call is generated again."""
    api.ask(prompts[0])
    assert run(api.settings["bind"], "clear") == (0, "The cache is empty.\n", "")
    assert api.get("/cache").json["entries"] == 0 and api.ask(prompts[0]).json["cached"] is False


def test_warm_reads_prompts_and_bodies_and_can_go_on(api, prompts, tmp_path):
    """A file of both kinds with blank lines and a byte order mark is generated once, and is all there the next time."""
    body = {"prompt": prompts[1], "max_tokens": 5, "stream": True}
    file = tmp_path / "prompts.txt"
    file.write_text(f"\ufeff{prompts[0]}\r\n\n  \t\n{json.dumps(body)}\n  {prompts[2]} ünd 漢字  ", encoding="utf-8")
    status, out, err = run(api.settings["bind"], "warm", file)
    assert (status, err, summary(out)) == (0, "", [3, 3, 0, 0, 0])
    assert out.splitlines()[0] == "warming"
    for fields in ({"prompt": prompts[0]}, {**body, "stream": False}, {"prompt": f"{prompts[2]} ünd 漢字"}):
        assert api.ask(**fields).json["cached"] is True
    status, out, err = run(api.settings["bind"], "warm", file)
    assert (status, err, summary(out)) == (0, "", [3, 0, 3, 0, 0])


def test_bad_lines_are_told_by_number_and_skipped(api, prompts):
    """Each with its reason; the good ones are generated, and the status is 1."""
    status, out, err = warm(
        api, prompts[0], "", '{"prompt": ', b"caf\xe9", '{"prompt": "x", "max_tokens": 0, "colour": 1}',
        '{"a":' * 20000, '{"prompt": "x", "seed": NaN}', f"{prompts[1]} [[fault=http_500]]", "\u2003", prompts[2],
        how=run)
    assert (status, summary(out)) == (1, [9, 2, 0, 7, 0])
    told = lines_of(err)
    assert told.keys() == set(range(3, 10)) and len(err.splitlines()) == 7
    assert "not one JSON" in told[3] and "not UTF-8" in told[4] and "byte 3" in told[4]
    assert "422" in told[5] and "max_tokens: " in told[5] and "colour: " in told[5]
    assert "nested" in told[6] and "NaN" in told[7] and "502" in told[8] and "prompt: " in told[9]
    assert "{'" not in err


def test_a_broken_connection_costs_one_line(prompts):
    """A server that breaks off, or answers what is no JSON, fails the line and not the rest."""
    with impostor(["", "", "<h1>oops</h1>", '{"cached": false}']) as port:
        status, out, err = run_here(f"127.0.0.1:{port}", "warm", "-", text=b"a\nb\nc\nd")
    assert (status, summary(out)) == (1, [4, 1, 0, 3, 0])
    assert "no answer: ConnectionError" in lines_of(err)[1] and "answered 200" in lines_of(err)[3]


def test_ctrl_c_ends_with_the_summary(api, shared_double, prompts, tmp_path):
    """It says how to continue, which then costs nothing for the lines done."""
    file = tmp_path / "prompts.txt"
    file.write_text("\n".join([prompts[0], f"{prompts[1]} [[ttft=20]]", prompts[2]]))
    with start(api.settings["bind"], "warm", file, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        until(lambda: shared_double.running == 1 and shared_double.finished >= 1)
        until(lambda: any("ttft" in prompt for prompt in shared_double.generations))
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130 and summary(out.decode()) == [3, 1, 0, 0, 2]
    assert err.decode().strip() == "Interrupted; run it again to continue."
    shared_double.wait(running=0)  # generations without a reader are cancelled
    assert summary(warm(api, prompts[0], prompts[2])[1]) == [2, 1, 1, 0, 0]


def test_a_terminal_sees_rate_and_time_left(api, prompts):
    """The bar grows in place; a failed line is reported on a line of its own, and the bar continues below it."""
    screen = terminal(api, *[f"{prompts[0]} {n} [[gap=0.02]]" for n in range(4)], "{", *prompts)
    assert re.search(r"warming  \[#+-+\]  5/8  \d+\.\d/s  0:00:0\d left", screen)
    assert [line for line in screen.split("\n") if "line 5: it is not one JSON" in line][0].startswith("line 5")
    last = [line for line in screen.split("\n") if "8/8" in line][-1]
    assert "0:00:00 left" in last and "8 lines: 7 generated, 0 were cached, 1 failed, 0 left" in screen


def terminal(api, *lines):
    """The terminal's content after each redraw while these prompts are warmed."""
    with commands.terminal() as (ours, theirs):
        with start(api.settings["bind"], "warm", "-", stdin=subprocess.PIPE, stdout=theirs, stderr=theirs) as process:
            os.close(theirs)
            process.stdin.write("\n".join(lines).encode())
            process.stdin.close()
            seen = commands.screens(ours)
            assert process.wait(PATIENCE) == 1
    return seen


@pytest.mark.parametrize("how, command", [(run, ["stats"]), (run_here, ["clear"]), (run_here, ["warm", "-"])])
def test_a_server_that_is_down_is_a_sentence(how, command):
    """The message says where no service answers and what to do; the status is not 0."""
    port = free_port()
    status, out, err = how(f"0.0.0.0:{port}", *command, text=b"x")
    assert (status, out) == (1, "")
    assert err == (f"Error: No server answers at http://127.0.0.1:{port}; start it, or set LLAMA_API_BIND to its"
                   " address.\n")


def test_a_server_that_goes_away_ends_with_the_summary():
    """After that no line is tried in vain, and the message says how to continue."""
    with impostor(['{"cached": true}', None]) as port:
        status, out, err = run_here(f"127.0.0.1:{port}", "warm", "-", text=b"a\nb\nc\nd")
    assert (status, summary(out)) == (1, [4, 0, 2, 0, 2])
    assert "No server answers at" in err and err.endswith("Then run it again to continue.\n")


@pytest.mark.parametrize("body", ["<h1>It works!</h1>", "[]", "{}"])
def test_another_server_is_a_sentence(body):
    """The server at that address is not this service."""
    with impostor(first=body) as port:
        status, out, err = run_here(f"127.0.0.1:{port}", "stats")
    assert (status, out) == (1, "") and "is not llama_api" in err and "LLAMA_API_BIND" in err


def test_key_and_host_are_sent(shared_double, shared_serve, tmp_path):
    """The first of the keys, also from a file, and a trusted host; without a key the message names the cure."""
    keys = tmp_path / "keys"
    keys.write_text("sesame\nother\n")
    api = shared_serve(shared_double, api_keys_file=keys, trusted_hosts=".example.com,localhost")
    guarded = {"api_keys_file": keys, "trusted_hosts": ".example.com,localhost"}
    assert run(api.settings["bind"], "stats", api_keys_file=keys, trusted_hosts=".example.com")[0] == 0
    assert summary(warm(api, new_prompt(), **guarded)[1]) == [1, 1, 0, 0, 0]
    status, out, err = run_here(api.settings["bind"], "stats", trusted_hosts="localhost")
    assert (status, out) == (1, "") and "set LLAMA_API_API_KEYS" in err
    status, out, err = run_here(api.settings["bind"], "clear", api_keys="other")
    assert (status, out) == (1, "") and "400" in err and "host" in err


def test_a_rate_limit_is_waited_for(shared_double, shared_serve):
    """A line that comes too soon is sent again later."""
    api = shared_serve(shared_double, rate_limit="5/second")
    status, out, err = warm(api, *[new_prompt() for _ in range(5)])
    assert (status, summary(out), err) == (0, [5, 5, 0, 0, 0], "")
    assert any(record.get("status") == 429 for record in api.records)


def test_more_lines_than_room_are_warned_of(shared_double, shared_serve):
    """They are generated all the same."""
    api = shared_serve(shared_double, cache_max_entries=2)
    status, out, err = warm(api, *[new_prompt() for _ in range(3)])
    assert (status, summary(out)) == (0, [3, 3, 0, 0, 0]) and "room for 2 answers" in err


def test_wrong_settings_are_all_told():
    """Each in a sentence, and the status is not 0."""
    status, out, err = run("127.0.0.1:1", "stats", timeout="soon", parallel="0")
    assert (status, out) == (1, "")
    assert "LLAMA_API_TIMEOUT='soon' must be" in err and "LLAMA_API_PARALLEL='0' must be" in err


def test_workers_without_a_shared_cache_are_warned_of(api, prompts):
    """Only one of their caches is reported, or emptied."""
    status, out, err = run_here(api.settings["bind"], "clear", WEB_CONCURRENCY=2)
    assert (status, out) == (0, "The cache is empty.\n") and "set LLAMA_API_CACHE_URL" in err


@pytest.mark.parametrize("name, why", [("nowhere.txt", "No such file or directory"), ("", "Is a directory")])
def test_a_file_that_cannot_be_read_is_a_sentence(api, tmp_path, name, why):
    """One sentence, whether it does not exist or is not a file."""
    path = tmp_path / name
    status, out, err = run_here(api.settings["bind"], "warm", path)
    assert (status, out, err) == (1, "", f"Error: The file {path} cannot be read: {why}.\n")


@contextmanager
def impostor(bodies=(), first='{"max_entries": 1000}'):
    """The port of another server, which answers a GET by ``first`` and each POST by the next of ``bodies``.

    An empty one closes the connection. None is answered as cached, and then the server stops.
    """
    rest = list(bodies)

    class Impostor(Handler):
        def do_GET(self):
            self.answer(first)

        def do_POST(self):
            self.read_body()
            body = rest.pop(0)
            if body is None:
                self.server.shutdown()
                self.server.server_close()
            if body != "":
                self.answer(body or '{"cached": true}')

        def answer(self, body):
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

    with listening(Impostor) as server:
        yield server.server_port
