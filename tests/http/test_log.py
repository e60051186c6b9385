"""The log from outside: a line for every request in any case, its content, and what it never contains."""

import gzip
import json
import re
import subprocess

import pytest

from tests.support.gunicorn_server import JSON, new_prompt, together, until
from tests.support.programs import needed

ALWAYS = {"time", "level", "message", "request_id", "method", "path", "status", "duration_ms", "client"}
OF_GENERATIONS = {"model", "cache", "inference_latency_ms", "queue_ms", "input_tokens", "output_tokens",
                  "cpu_usage_percent", "memory_usage_percent", "prompt_sha256"}
RFC_3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|\+00:00)")
SECRET = "Xyzzy-confidential-of-the-grey-house"
STORY = f"Tell a story of \u201c{SECRET}\u201d\nand of whoever <lives> there."
EMBEDDER = "embedder"


@pytest.fixture(scope="module")
def server(shared_double, shared_serve):
    return shared_serve(shared_double, timeout=0.7, models=EMBEDDER)


@pytest.fixture
def double(double):
    double.set_model(EMBEDDER, capabilities=["embedding"])
    return double


def test_a_line_has_the_fields_of_the_contract(api):
    """Each of its type; time in UTC."""
    record = api.record_of(api.get("/livez"))
    assert ALWAYS <= record.keys() and not OF_GENERATIONS & record.keys()
    assert RFC_3339.fullmatch(record["time"]) and record["level"] == "INFO" and record["client"] == "127.0.0.1"
    assert (record["method"], record["path"], record["status"]) == ("GET", "/livez", 200)
    assert isinstance(record["duration_ms"], float) and record["message"] and "error" not in record


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
def test_the_line_of_a_generation_tells_what_the_answer_told(api, stream):
    """The same figures to the digit, missed and hit."""
    prompt = new_prompt()
    for cached in ("miss", "hit"):
        reply = api.ask(prompt, stream=stream)
        body, record = reply.events[-1][1] if stream else reply.json, api.record_of(reply)
        assert ALWAYS | OF_GENERATIONS <= record.keys() and record["cache"] == cached
        assert record["model"] == body["model"] and re.fullmatch("[0-9a-f]{12}", record["prompt_sha256"])
        figures = OF_GENERATIONS - {"model", "cache", "prompt_sha256"}
        assert {name: record[name] for name in figures} == {name: body["metrics"][name] for name in figures}
        assert record["duration_ms"] >= record["inference_latency_ms"]


FAILING = [("/generate", {"prompt": "[[ttft=0.3]] [[fault=eof]]"}), ("/generate", {"prompt": "[[fault=hang]]"}),
           ("/generate", {"prompt": "[[fault=hang]]", "stream": True}),
           ("/v1/embeddings", {"model": EMBEDDER, "input": "[[fault=hang]]"})]


@pytest.mark.parametrize("path, body", FAILING)
def test_the_line_of_a_failed_generation_has_its_figures_and_its_ollama(api, double, path, body):
    """An operator learns which Ollama failed, and after how long."""
    record = api.record_of(api.request("POST", path, json.dumps(body), JSON))
    assert ALWAYS | OF_GENERATIONS | {"error"} <= record.keys() and record["status"] in (502, 504)
    assert record["host"] == f"127.0.0.1:{double.port}"
    assert record["duration_ms"] >= record["inference_latency_ms"] >= 300 > record["queue_ms"]


def test_who_only_waited_has_waited(double, serve):
    """A request that never got a slot spent its time in the queue, and no Ollama generated for it."""
    impatient = serve(double, queue_timeout=0.5)
    with impatient.open_ask(new_prompt("[[ttft=30]]")):
        double.wait(running=1)
        for stream in (False, True):
            record = impatient.record_of(impatient.ask(new_prompt(), stream=stream))
            assert record["error"] == "overloaded" and record["queue_ms"] >= 500
            assert record["inference_latency_ms"] < 250 and "host" not in record
    double.wait(running=0)


RESULTS = [({}, "miss"), ({}, "hit"), ({"Cache-Control": "no-cache"}, "refresh"),
           ({"Cache-Control": "max-age=0"}, "refresh"), ({"Cache-Control": "no-store"}, "bypass")]


def test_the_line_says_what_the_cache_did(api, double):
    """hit, miss, refresh, bypass, collapsed; a miss that failed is a miss."""
    prompt = new_prompt()
    for headers, result in RESULTS:
        assert api.record_of(api.ask(prompt, headers))["cache"] == result
    slow, failing = new_prompt("[[ttft=0.3]]"), new_prompt("[[fault=oom]]")
    records = [api.record_of(reply) for reply in together(3, lambda n: api.ask(slow))]
    assert sorted(record["cache"] for record in records) == ["collapsed", "collapsed", "miss"]
    record = api.record_of(api.ask(failing))
    assert (record["cache"], record["error"], record["level"]) == ("miss", "ollama-error", "ERROR")


LEVELS = [("/livez", "", 200, "INFO", None), ("/x", "", 404, "INFO", "not-found"),
          ("/generate", "{", 400, "INFO", "malformed-json"), ("/generate", "{}", 422, "INFO", "invalid-request"),
          ("/generate", '{"prompt": "[[fault=oom]]"}', 502, "ERROR", "ollama-error"),
          ("/generate", '{"prompt": "[[fault=not_found]]"}', 503, "ERROR", "model-not-found"),
          ("/generate", '{"prompt": "[[fault=hang]]"}', 504, "ERROR", "ollama-timeout")]


@pytest.mark.parametrize("path, body, status, level, error", LEVELS)
def test_the_level_is_error_from_500_on(api, path, body, status, level, error):
    """Otherwise INFO; error has the slug."""
    record = api.record_of(api.request("POST" if body else "GET", path, body, JSON))
    assert (record["status"], record["level"], record.get("error")) == (status, level, error)


def test_a_request_whose_client_left_has_its_line(api, double):
    """Nobody saw its answer, but the log has it, streamed or plain."""
    for stream in (False, True):
        request_id = f"left-{stream}"
        with api.open_ask(new_prompt("[[gap=0.05]] [[fault=endless_tokens]]"), {"X-Request-ID": request_id},
                          stream=stream) as client:
            double.wait(running=1)
            assert not stream or client.event()
        record = api.record_of(request_id)
        assert record["path"] == "/generate" and record["prompt_sha256"]
        double.wait(running=0)


def test_the_same_lines_go_to_standard_output(api):
    """The file and stdout have the same lines."""
    reply = api.ask(new_prompt())
    record = api.record_of(reply)
    assert json.dumps(record, separators=(",", ":")) in until(
        lambda: reply.headers["X-Request-ID"] in api.stdout and api.stdout)
    assert all(json.loads(line) for line in api.stdout.splitlines())


def test_prompts_answers_and_keys_are_in_no_log_and_no_figure(api):
    """For any outcome of the request, wherever the text was."""
    headers = {"X-API-Key": SECRET, "Authorization": f"Bearer {SECRET}", "Cookie": SECRET}
    body = {"system": SECRET, "stop": SECRET}
    for markers in ("", "[[fault=oom]]", "[[fault=eof]]", "[[fault=too_long]]"):
        reply = api.ask(new_prompt(f"{SECRET} {markers}"), headers, **body)
        api.record_of(reply)
    words = api.ask(new_prompt()).text
    api.record_of(api.ask_raw(json.dumps({"prompt": 5, SECRET: SECRET})))
    api.record_of(api.get(f"/livez?q={SECRET}"))
    for text in (api.log_path.read_text(), api.stdout, api.stderr, api.get("/metrics").body.decode()):
        assert SECRET not in text and words not in text


def chat(*messages, **fields):
    """The body of a chat, of pairs of role and content."""
    return {"model": "llama3:8b", "messages": [{"role": role, "content": text} for role, text in messages], **fields}


REPEATED = [
    ("/generate", {"prompt": STORY}), ("/generate", {"prompt": SECRET, "stream": True}),
    ("/generate", {"prompt": "Who?", "system": STORY}), ("/api/generate", {"model": "llama3:8b", "prompt": STORY}),
    ("/api/chat", chat(("user", STORY))), ("/api/chat", chat(("system", STORY), ("user", STORY), stream=False)),
    ("/api/chat", chat(("user", "Hi"), ("tool", STORY), ("tool", SECRET))),
    ("/v1/chat/completions", chat(("user", STORY), ("assistant", STORY), ("user", SECRET))),
    ("/api/embed", {"model": EMBEDDER, "input": [STORY, SECRET]}), ("/api/embed", {"model": EMBEDDER, "input": STORY}),
    ("/api/embeddings", {"model": EMBEDDER, "prompt": STORY}), ("/v1/embeddings", {"model": EMBEDDER, "input": STORY})]


@pytest.mark.parametrize("fault", ["repeats_prompt", "repeats_part"])
@pytest.mark.parametrize("path, body", REPEATED)
def test_what_ollama_repeats_of_a_prompt_is_not_logged(api, double, path, body, fault):
    """Its error is, with [prompt] in place of what was asked; the caller gets none of it."""
    double.fail(fault)
    before = len(api.records)
    reply = api.request("POST", path, json.dumps(body), {**JSON, "Cache-Control": "no-store"})
    record = api.record_of(reply)
    assert record["error"] == "ollama-error" and SECRET not in reply.body.decode()
    assert "unexpected EOF" not in reply.body.decode()
    told, = [line["message"] for line in api.records[before:] if line["message"].startswith("Ollama answered")]
    assert "[prompt]" in told and "unexpected EOF" in told
    until(lambda: record["request_id"] in api.stdout)
    for log in (api.log_path.read_text(), api.stdout, api.stderr):
        assert SECRET not in log and STORY[:20] not in log and STORY[-20:] not in log


INJECTIONS = ["/a%0Ab", "/a%0D%0Ab", "/a%E2%80%A8b", "/a%C2%85b", "/a%0A%7B%22level%22:%22FORGED%22%7D", "/a%1B[31mb",
              "/a%00b", "/%ff%fe", "/a%22,%22level%22:%22FORGED"]


@pytest.mark.parametrize("path", INJECTIONS)
def test_a_caller_can_put_no_line_break_into_the_log(api, path):
    """Neither by the path, nor by an id, nor by the agent's name; each line is one JSON object."""
    before = len(api.records)
    reply = api.get(path, headers={"X-Request-ID": "x\u0085{}".encode("latin-1"), "User-Agent": "a\tb"})
    record = api.record_of(reply)
    assert record["level"] == "INFO" and record["path"].isprintable() and record["message"].isprintable()
    text = api.log_path.read_text()
    assert len(text.splitlines()) == text.count("\n") == len(api.records) > before
    assert "FORGED" not in {record["level"] for record in api.records}


def test_the_log_follows_a_rotation(api):
    """Renamed or deleted, the next lines are in a new file; none is lost, torn or doubled."""
    rotated = api.log_path.with_name("api.log.1")
    ids = [f"rotation-{n}" for n in range(60)]

    def call(n):
        api.get("/livez", headers={"X-Request-ID": ids[n]})
        if n == 30:
            api.log_path.rename(rotated)
    for n in range(60):
        call(n)
    until(lambda: api.log_path.exists() and ids[-1] in api.log_path.read_text())
    text = rotated.read_text() + api.log_path.read_text()
    seen = [json.loads(line)["request_id"] for line in text.splitlines() if '"rotation-' in line]
    assert seen == ids
    api.log_path.unlink()
    api.get("/livez", headers={"X-Request-ID": "after-deletion"})
    until(lambda: api.log_path.exists() and "after-deletion" in api.log_path.read_text())


def test_logrotate_itself_rotates_it(api):
    """With the plainest of configurations, without a signal to the service."""
    logrotate = needed("logrotate")
    config = api.directory / "rotate.conf"
    config.write_text(f"{api.log_path} {{\n rotate 2\n compress\n}}\n")
    api.log_path.chmod(0o640)
    subprocess.run([logrotate, "-f", "-s", str(api.directory / "state"), str(config)], check=True)
    assert gzip.decompress(api.log_path.with_name("api.log.1.gz").read_bytes())
    api.record_of(api.get("/livez"))


@pytest.fixture(scope="module")
def talkative(shared_double, shared_serve):
    """A server that logs prompts, to a disk that is full."""
    return shared_serve(shared_double, log_prompts="true", log_file="/dev/full")


def stdout_record(api, reply):
    """The record of ``reply`` on standard output."""
    def find():
        lines = [json.loads(line) for line in api.stdout.splitlines()]
        return [line for line in lines if line.get("request_id") == reply.headers["X-Request-ID"]]
    found = until(find)
    assert len(found) == 1
    return found[0]


def test_a_full_disk_fails_no_request(talkative, double):
    """stdout has every line, and one that reports the trouble."""
    for _ in range(3):
        reply = talkative.ask(new_prompt())
        assert reply.status == 200 and stdout_record(talkative, reply)["status"] == 200
    lines = until(lambda: [json.loads(line) for line in talkative.stdout.splitlines() if "cannot write" in line])
    assert len(lines) == 1 and lines[0]["level"] == "WARNING"


def test_log_prompts_logs_them(talkative, double):
    """Only when the operator wants it; on one line each, whatever is in them."""
    prompt = SECRET + new_prompt() + "\n\u2028\u0085end"
    reply = talkative.ask(prompt)
    assert stdout_record(talkative, reply)["prompt"] == prompt
    assert stdout_record(talkative, reply)["answer"] == reply.text
    assert len(talkative.stdout.splitlines()) == talkative.stdout.count("\n")


def test_the_level_filters_and_stdout_alone_is_enough(double, serve):
    """LOG_LEVEL=ERROR keeps the failures alone; an empty LOG_FILE makes no file."""
    api = serve(double, log_level="error", log_file="")
    good, bad = api.ask(new_prompt()), api.ask(new_prompt("[[fault=oom]]"))
    assert good.status == 200 and stdout_record(api, bad)["error"] == "ollama-error"
    assert [json.loads(line)["level"] for line in api.stdout.splitlines()] == ["ERROR"]
    assert not api.log_path.exists()


def test_a_log_file_that_cannot_be_opened_is_a_warning(double, serve, tmp_path):
    """It is no fault of the settings: the service runs, and says it on stdout."""
    (tmp_path / "file").write_text("")
    api = serve(double, log_file=tmp_path / "file" / "api.log")
    reply = api.get("/livez")
    assert stdout_record(api, reply)["status"] == 200
    assert any("cannot open" in line and '"WARNING"' in line for line in api.stdout.splitlines())
