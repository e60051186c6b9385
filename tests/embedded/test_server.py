"""The embedded Ollama as a server: its process, its inventory, /api/generate."""

import contextlib
import hashlib
import http.client
import json
import os
import re
import signal
import socket
import sys
import threading

import pytest
import requests

from llama_api.embedded.errors import ClientGone
from llama_api.embedded.model import find_file
from llama_api.embedded.slots import Slots
from tests.embedded.conftest import COMMAND, MODEL, address_of, process
from tests.support.fakes import until

CAPITAL = "The capital of France is"  # to be sent raw: a few tokens are read sooner than a whole template
TOO_LONG = "word " * 5000


@contextlib.contextmanager
def generation(address, prompt="Tell me a long story.", **fields):
    """Open a connection that asks for far more than a test would wait for."""
    with contextlib.closing(http.client.HTTPConnection(address, timeout=60)) as connection:
        body = {"model": MODEL, "prompt": prompt, "options": {"num_predict": 4000, "repeat_penalty": 1.3}} | fields
        connection.request("POST", "/api/generate", json.dumps(body))
        yield connection


def test_it_says_that_it_runs(server):
    """The root and the version answer as Ollama's do, to HEAD as well."""
    root = requests.get(f"http://{server}/", timeout=5)
    assert (root.text, root.headers["Content-Type"]) == ("Ollama is running", "text/plain; charset=utf-8")
    assert "embedded" in requests.get(f"http://{server}/api/version", timeout=5).json()["version"]
    assert requests.head(f"http://{server}/", timeout=5).status_code == 200


def test_the_model_goes_by_its_own_name_and_digest(server):
    """Tags, ps and show describe SmolLM2, and nothing in them could be taken for Llama 3."""
    tag, = requests.get(f"http://{server}/api/tags", timeout=5).json()["models"]
    loaded, = requests.get(f"http://{server}/api/ps", timeout=5).json()["models"]
    shown = requests.post(f"http://{server}/api/show", json={"model": MODEL}, timeout=5)
    assert tag["name"] == tag["model"] == loaded["name"] == MODEL
    assert tag["digest"] == loaded["digest"] == hashlib.sha256(find_file().read_bytes()).hexdigest()
    assert loaded["context_length"] == 4096
    assert re.findall(r'^stop\s+"(.*)"$', shown.json()["parameters"], re.M) == ["<|im_start|>", "<|im_end|>"]
    assert shown.json()["capabilities"] == ["completion", "embedding"]
    assert shown.json()["model_info"]["smollm2.context_length"] == 8192
    assert "llama3" not in shown.text.lower()


def test_it_answers_with_sense(ask):
    """The model is a real one."""
    answer = ask(CAPITAL, raw=True).json()
    assert "Paris" in answer["response"]
    assert answer["model"] == MODEL and answer["done"] is True


def test_counts_are_the_engines_own(ask):
    """A budget of five is five tokens, and the context holds just those and the prompt's."""
    answer = ask("Tell me a story.", options={"num_predict": 5}).json()
    assert (answer["done_reason"], answer["eval_count"]) == ("length", 5)
    assert len(answer["context"]) == answer["prompt_eval_count"] + 5
    for key in ("total_duration", "load_duration", "prompt_eval_duration", "eval_duration"):
        assert type(answer[key]) is int and answer[key] > 0
    assert answer["total_duration"] > answer["prompt_eval_duration"] + answer["eval_duration"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?Z", answer["created_at"])


def test_an_answer_that_ends_by_itself_counts_its_end_token(ask):
    """The reason is `stop`, and one token more was generated than there are pieces."""
    answer = ask("Say hi.", options={"num_predict": 100}, stream=True)
    *pieces, last = [json.loads(line) for line in answer.text.splitlines()]
    assert (last["done_reason"], last["eval_count"]) == ("stop", len(pieces) + 1)


def test_a_stream_joins_to_the_plain_answer(ask):
    """One object a line, only the last one done, and the same text."""
    prompt = "Write 'naïve café' and three emoji."
    streamed, plain = ask(prompt, stream=True), ask(prompt).json()
    objects = [json.loads(line) for line in streamed.text.splitlines()]
    assert streamed.headers["Content-Type"] == "application/x-ndjson"
    assert streamed.headers["Transfer-Encoding"] == "chunked"
    assert "".join(item["response"] for item in objects) == plain["response"] != ""
    assert [item["done"] for item in objects] == [False] * (len(objects) - 1) + [True]
    assert objects[-1]["eval_count"] == plain["eval_count"]


def test_greedy_answers_repeat_whatever_came_between(ask):
    """Temperature 0 gives the same text again, with another prompt in the engine's cache in between."""
    first = ask(CAPITAL, raw=True).json()["response"]
    ask("The capital of Spain is", raw=True)
    assert ask(CAPITAL, raw=True).json()["response"] == first


def test_a_seed_repeats_and_another_differs(ask):
    """The sampler's draws hang on the seed alone."""
    def draw(seed):
        return ask("Once upon a time", raw=True, options={"temperature": 1.2, "seed": seed}).json()["response"]
    assert draw(7) == draw(7) != draw(8)


def test_a_stop_ends_the_answer_and_is_left_out(ask):
    """The text before the stop remains."""
    whole = ask(CAPITAL, raw=True).json()["response"]
    stop = whole[9:14]  # begins and ends inside tokens
    answer = ask(CAPITAL, raw=True, options={"stop": ["nowhere", stop]}).json()
    assert (answer["response"], answer["done_reason"]) == (whole.partition(stop)[0], "stop")


def test_the_chat_template_is_applied(ask, server):
    """Prompt and system in ChatML, sent raw, are the very same request; so is the chat of the two."""
    system, prompt = "You are a pirate.", "Who are you?"
    chatml = f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"
    templated, raw = ask(prompt, system=system).json(), ask(chatml, raw=True).json()
    turns = [{"role": "system", "content": system}, {"role": "user", "content": prompt}]
    chat = requests.post(f"http://{server}/api/chat", timeout=60, json={
        "model": MODEL, "messages": turns, "stream": False, "options": {"temperature": 0, "num_predict": 8}}).json()
    assert templated["response"] == raw["response"] == chat["message"]["content"]
    assert templated["prompt_eval_count"] == raw["prompt_eval_count"] == chat["prompt_eval_count"]
    assert "context" in templated and "context" not in raw and "context" not in chat
    assert ask(prompt).json()["response"] != templated["response"]


def test_raw_text_goes_in_verbatim(ask):
    """Two words are two tokens, without a template or a default system message."""
    assert ask("hi there", raw=True, options={"num_predict": 1}).json()["prompt_eval_count"] == 2


def test_a_character_of_many_tokens_keeps_the_context_whole(ask):
    """The engine streams only the last token of such a character; the context has them all."""
    answer = ask("Hi", format={"enum": ["🦙🦙🦙"]}, options={"num_predict": 40}).json()
    assert answer["response"] == '"🦙🦙🦙"'
    assert len(answer["context"]) == answer["prompt_eval_count"] + answer["eval_count"] - 1  # the end token


def test_json_can_be_asked_for(ask):
    """A schema binds the answer."""
    schema = {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"]}
    answer = ask("Name a city.", format=schema, options={"num_predict": 40}).json()
    assert json.loads(answer["response"])["city"] in ("Paris", "Rome")


@pytest.mark.parametrize("model", ["SmolLM2:135M", " smollm2:135m ", "library/smollm2:135m"])
def test_a_name_is_normalised_and_echoed(ask, model):
    """Case, blanks and the default namespace make no difference; the answer has the name as it was sent."""
    assert ask("Hi", model=model, options={"num_predict": 1}).json()["model"] == model


@pytest.mark.parametrize("keep_alive, reason", [(None, "load"), ("5m", "load"), (-1, "load"), (0, "unload")])
def test_no_prompt_only_loads_or_unloads(server, keep_alive, reason):
    """One plain object without figures, streamed or not; /api/ps shows the difference."""
    answer = requests.post(f"http://{server}/api/generate", json={"model": MODEL, "keep_alive": keep_alive}, timeout=5)
    assert answer.headers["Content-Type"] == "application/json; charset=utf-8"
    assert answer.json() == {"model": MODEL, "created_at": answer.json()["created_at"], "response": "",
                             "done": True, "done_reason": reason}
    assert len(requests.get(f"http://{server}/api/ps", timeout=5).json()["models"]) == (reason == "load")


@pytest.mark.parametrize("body, status, error", [
    (b"", 400, "missing request body"),
    (b"{", 400, "unexpected EOF"),
    (b'{"model": "x', 400, "unexpected EOF"),
    (b'{"model": nope}', 400, "invalid character 'n' looking for beginning of value"),
    (b"[]", 400, "json: cannot unmarshal array into Go value of type api.GenerateRequest"),
    ({"prompt": 5}, 400, "json: cannot unmarshal number into Go struct field GenerateRequest.prompt of type string"),
    ({"stream": "x"}, 400, "json: cannot unmarshal string into Go struct field GenerateRequest.stream of type bool"),
    ({"model": ""}, 404, "model '' not found"),
    ({"model": None}, 404, "model '' not found"),
    ({"model": "no good"}, 400, "invalid model name"),
    ({"model": "Llama3:8b"}, 404, "model 'Llama3:8b' not found"),
    ({"model": "smollm2"}, 404, "model 'smollm2' not found"),
    ({"keep_alive": "10"}, 400, 'time: missing unit in duration "10"'),
    ({"keep_alive": "soon"}, 400, 'time: invalid duration "soon"'),
    ({"raw": True, "system": "x"}, 400, "raw mode does not support template, system, or context"),
    ({"think": True}, 400, f'"{MODEL}" does not support thinking'),
    ({"options": {"temperature": "hot"}}, 500, 'option "temperature" must be of type float32'),
    ({"options": {"num_predict": True}}, 500, 'option "num_predict" must be of type integer'),
    ({"options": {"use_mmap": 1}}, 500, 'option "use_mmap" must be of type boolean'),
    ({"options": {"stop": "\n"}}, 500, 'option "stop" must be of type array'),
    ({"options": {"stop": [1]}}, 500, 'option "stop" must be of type an array of strings'),
    ({"format": 5}, 500, 'invalid format: 5; expected "json" or a valid JSON Schema object')])
def test_bad_requests(server, body, status, error):
    """Statuses and texts are Ollama's, also where a stream was asked for."""
    if isinstance(body, dict):
        body = json.dumps({"model": MODEL, "prompt": "Hi"} | body).encode()
    answer = requests.post(f"http://{server}/api/generate", data=body, timeout=5)
    assert (answer.status_code, answer.json()) == (status, {"error": error})
    assert answer.headers["Content-Type"] == "application/json; charset=utf-8"


REQUEST = b'{"model": "smollm2:135m", "prompt": "Hi", "raw": true, "stream": false, "options": {"num_predict": 1}, %b}'


@pytest.mark.parametrize("field, statuses", [
    (b'"prompt": "\\ud800 \xff"', {200}),
    (b'"context": [null]', {400}),
    (b'"context": [49152]', {400}),
    (b'"context": [99999999999999999999]', {400}),
    (b'"format": {"minimum": 1e999}', {400}),
    (b'"format": ' + b'{"properties":{"a":' * 300 + b"{}" + b"}}" * 300, {200, 400}),
    (b'"format": ' + b'{"a":' * 940 + b"{}" + b"}" * 940, {200, 400}),
    (b'"options": {"temperature": 1e999, "num_predict": 1, "seed": -1e999, "top_k": 1e99}', {200}),
    (b'"keep_alive": 1e999', {200}),
    (b'"top_logprobs": 1e999', {400})])
def test_odd_values_are_answered_and_leave_no_trace(post, field, statuses):
    """A status of Ollama's, soon, and the next request as ever."""
    body = REQUEST.replace(b'"raw": true', b'"raw": false') if b"context" in field else REQUEST
    assert post("/api/generate", body % field).status_code in statuses
    assert post("/api/generate", REQUEST % b'"x": 0').ok


@pytest.mark.parametrize("length", [b"-1", b"ten", b"9" * 30])
def test_a_length_that_is_none_is_refused(server, length):
    """The connection ends, because the start of the next request is unknown."""
    host, port = server.split(":")
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        connection.sendall(b"POST /api/chat HTTP/1.1\r\nHost: x\r\nContent-Length: %b\r\n\r\n" % length)
        answer = b"".join(iter(lambda: connection.recv(4096), b""))
    assert answer.startswith(b"HTTP/1.1 400 ") and answer.endswith(b"400 Bad Request")


def test_two_stand_side_by_side(server, ask):
    """As one build on two hosts: equal digests, equal answers, and neither waits for the other."""
    with process(*COMMAND) as started, generation(server) as busy:
        other = address_of(started)
        busy.getresponse().readline()
        answer = requests.post(f"http://{other}/api/generate", timeout=60, json={
            "model": MODEL, "prompt": CAPITAL, "raw": True, "stream": False,
            "options": {"temperature": 0, "num_predict": 8}}).json()["response"]
        digests = {requests.get(f"http://{host}/api/tags", timeout=5).json()["models"][0]["digest"]
                   for host in (server, other)}
    assert len(digests) == 1
    assert ask(CAPITAL, raw=True).json()["response"] == answer


@pytest.mark.parametrize("method, path, status, text", [
    ("GET", "/nope", 404, "404 page not found"),
    ("POST", "/nope", 404, "404 page not found"),
    ("GET", "/api/generate", 405, "405 method not allowed"),
    ("POST", "/api/tags", 405, "405 method not allowed")])
def test_wrong_paths_and_methods_are_plain_text(server, method, path, status, text):
    """An unknown path and an unknown model differ in their Content-Type; the connection stays open."""
    with requests.Session() as session:
        answer = session.request(method, f"http://{server}{path}", data="{}", timeout=5)
        assert (answer.status_code, answer.text, answer.headers["Content-Type"]) == (status, text, "text/plain")
        assert session.get(f"http://{server}/", timeout=5).ok


def test_a_prompt_beyond_the_window_is_refused_if_it_must_not_be_cut(ask):
    """The error is a string with the engine's own JSON in it."""
    answer = ask(TOO_LONG, truncate=False)
    error = json.loads(answer.json()["error"])["error"]
    assert answer.status_code == 400
    assert (error["type"], error["n_ctx"]) == ("exceed_context_size_error", 4096)
    assert error["n_prompt_tokens"] > 5000
    assert ask(TOO_LONG, shift=False).json()["error"].startswith("the prompt is longer than the context length")


def served(ask, prompt):
    """Whether an answer comes at once."""
    try:
        return ask(prompt, timeout=0.3).ok
    except requests.ReadTimeout:
        return False


@pytest.mark.parametrize("fields", [{"stream": True}, {"stream": False}, {"prompt": TOO_LONG}],
                         ids=["streamed", "plain", "reading a long prompt"])
def test_a_client_that_goes_frees_the_slot(server, ask, fields):
    """The next request is served at once, though the abandoned answer would have taken a minute."""
    with generation(server, **fields) as connection:
        if fields.get("stream"):
            assert json.loads(connection.getresponse().readline())["done"] is False
        else:  # another one is not served while this one holds the slot
            until(lambda: not served(ask, "Hi"))
    assert ask("Hi", timeout=4, options={"num_predict": 1}).ok


def test_it_answers_while_it_generates(server):
    """Liveness and inventory do not wait for the slot, and neither does a load."""
    with generation(server) as connection:
        connection.getresponse().readline()
        for path in ("", "api/version", "api/tags", "api/ps"):
            assert requests.get(f"http://{server}/{path}", timeout=2).ok
        assert requests.post(f"http://{server}/api/generate", json={"model": MODEL}, timeout=2).ok


def test_slots_are_given_first_come_first_served():
    """A client that goes leaves the queue, and the others keep their order."""
    slots, order, leaving = Slots(1), [], threading.Event()

    def wait(name, gone):
        with contextlib.suppress(ClientGone), slots.take(gone):
            order.append(name)

    with slots.take(lambda: False):
        threads = []
        for name, gone in (("first", lambda: False), ("leaver", leaving.is_set), ("last", lambda: False)):
            threads.append(threading.Thread(target=wait, args=(name, gone)))
            threads[-1].start()
            until(lambda: len(slots.waiting) == len(threads))
        leaving.set()
        until(lambda: len(slots.waiting) == 2)
    for thread in threads:
        thread.join()
    assert order == ["first", "last"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_while_it_generates(number):
    """Exit status 0, soon, and nothing on stderr."""
    with process(*COMMAND) as started, generation(address_of(started)) as connection:
        connection.getresponse().readline()
        started.send_signal(number)
        assert started.wait(2) == 0
        assert started.stderr.read() == ""


def test_it_ends_with_its_parent():
    """A launcher killed by -9 leaves nothing behind."""
    launcher = "import os, subprocess, sys; subprocess.run([*sys.argv[1:], '--parent', str(os.getpid())])"
    with process(sys.executable, "-c", launcher, *COMMAND) as started:
        host, port = address_of(started).split(":")
        started.kill()

        def is_closed():
            with socket.socket() as probe:
                return probe.connect_ex((host, int(port))) != 0
        until(is_closed)


def test_a_taken_port_is_one_sentence(server):
    """It says what to do, and the status is 1."""
    with process(*COMMAND[:-1], server.split(":")[1]) as started:
        out, err = started.communicate()
    assert (started.returncode, out, err.count("\n")) == (1, "", 1)
    assert "choose another --port" in err


@pytest.mark.parametrize("lacking", ["engine", "model", "sound model"])
def test_what_is_not_installed_is_one_sentence(tmp_path, lacking):
    """It names the cure, and the status is 1."""
    (tmp_path / "xllamacpp.py").write_text("raise ImportError")
    (tmp_path / "broken.gguf").write_bytes(b"GGUF, but no more")
    environment = os.environ | ({"PYTHONPATH": str(tmp_path)} if lacking == "engine" else {})
    file = tmp_path / ("broken.gguf" if lacking == "sound model" else "none.gguf")
    with process(*COMMAND, "--model-file", file, env=environment) as started:
        out, err = started.communicate()
    assert (started.returncode, out, err.count("\n")) == (1, "", 1)
    assert "`make clean setup`" in err
