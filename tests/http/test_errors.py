"""Every error from outside: how each fault of Ollama's and each misuse of ours looks to a client."""

import json
import time

import pytest

from tests.support.double import FAULTS, answer_for
from tests.support.gunicorn_server import JSON, new_prompt, together, until

NOT_STORED = {"Cache-Control": "only-if-cached"}
TIMEOUT = 1.0
ERROR, TIMED_OUT, FINE, BUSY = (502, "ollama-error"), (504, "ollama-timeout"), (200, None), (503, "overloaded")
TOO_LONG, NO_MODEL = (422, "prompt-too-long"), (503, "model-not-found")
OUTCOMES = {  # of the double's faults; those that are not named are errors
    FINE: "controls blank_line response_missing reason_load reason_unknown reason_absent reason_number missing_counts"
          " missing_metrics zero_durations negative_counts string_counts text_in_last extra_fields slow leak glued"
          " split crlf long_line single_json after_done",
    TIMED_OUT: "hang hang_after_headers hang_midway trickle endless_blanks endless_garbage endless_tokens",
    TOO_LONG: "too_long too_long_plain too_long_shift", NO_MODEL: "not_found", BUSY: "busy"}
OUTCOME_OF = {fault: outcome for outcome, faults in OUTCOMES.items() for fault in faults.split()}
UNSTORED_THOUGH_FINE = "reason_load reason_unknown reason_absent reason_number".split()
FOREIGN = ("llama-server", "/usr/lib", "CUDA", "boom", "nginx", "signin_url", "fork/exec", "top_k is too large",
           "Traceback", ".py", "127.0.0.1", "maximum pending")


@pytest.fixture(scope="module")
def server(shared_double, shared_serve):
    return shared_serve(shared_double, timeout=TIMEOUT, parallel=4)


@pytest.fixture
def double(double):
    double.set(slots=16, slow=0.2, size=500_000)  # read well within the deadline on a busy machine, too
    return double


def test_every_fault_of_the_double_has_its_outcome():
    """The table above names no fault that there is not."""
    assert OUTCOME_OF.keys() <= FAULTS.keys()


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_ollama_is_its_problem_within_the_deadline(api, double, fault):
    """Plain and streamed at once; in time, without Ollama's own words, nothing cached; the next request works."""
    status, slug = OUTCOME_OF.get(fault, ERROR)
    prompts = [new_prompt(f"[[fault={fault}]]") for _ in range(2)]
    started = time.monotonic()
    plain, streamed = together(2, lambda n: api.ask(prompts[n], stream=n == 1))
    assert time.monotonic() - started < TIMEOUT + 2
    assert plain.status == status
    if status == 200:
        assert streamed.text and plain.text
    else:
        assert plain.slug == slug
        told = streamed.json if streamed.status != 200 else streamed.events[-1][1]
        assert (told["status"], told["type"]) == (status, f"/problems/{slug}")
        assert streamed.status == 200 or streamed.slug == slug
        assert not any(word in text for word in FOREIGN for text in (str(plain.json), str(told)))
        assert api.record_of(plain)["error"] == api.record_of(streamed)["error"] == slug
    kept = status == 200 and fault not in UNSTORED_THOUGH_FINE
    for prompt in prompts:
        assert api.ask(prompt, NOT_STORED).status == (200 if kept else 504)
    prompt = new_prompt()
    assert api.ask(prompt).text == answer_for(prompt)


@pytest.mark.parametrize("fault", ["oom", "reset", "close", "html_502", "not_found", "eof_at_once", "no_slots"])
def test_what_may_have_begun_a_generation_is_never_repeated(api, double, fault):
    """One call for one request."""
    prompt = new_prompt(f"[[fault={fault}]]")
    api.ask(prompt)
    assert double.generations[prompt] == 1


def test_ollama_that_is_busy_for_a_moment_is_not_noticed(api, double):
    """The second try is answered."""
    prompt = new_prompt("[[fault=busy]] [[times=1]]")
    assert api.ask(prompt).text == answer_for(prompt) and double.generations[prompt] == 2


def test_a_refused_connection_says_what_to_do(api, double):
    """503 ollama-unavailable with Retry-After and the command that starts it; then all is well again."""
    double.stop()
    replies = [api.ask(new_prompt(), stream=stream) for stream in (False, True)]
    double.start()
    for reply in replies:
        assert (reply.status, reply.slug) == (503, "ollama-unavailable")
        assert int(reply.headers["Retry-After"]) >= 1 and "ollama serve" in reply.json["detail"]
    prompt = new_prompt()
    assert api.ask(prompt).text == answer_for(prompt)


def test_a_missing_model_says_what_to_do(api, double):
    """503 model-not-found with the command that fetches it."""
    double.remove_model("llama3:8b")
    reply = api.ask(new_prompt())
    assert (reply.status, reply.slug) == (503, "model-not-found")
    assert "ollama pull llama3:8b" in reply.json["detail"]


def test_the_deadline_closes_the_call_and_frees_the_slot(api, double):
    """504 ollama-timeout; Ollama sees the disconnect."""
    assert api.ask(new_prompt("[[fault=hang]]")).slug == "ollama-timeout"
    double.wait(2, running=0, closed_early=1)
    assert api.health()["queue"]["running"] == 0
    assert api.ask(new_prompt()).status == 200


UNKNOWN = ["/x", "/generate/", "/generate/x", "/Generate", "/livez/", "/../etc/passwd",
           "/%00", "/x%0Ay", "/%ff", "/x" * 500, "/docs/../wsgi.py", "/cache/",
           "/nothing/here", "/x?prompt=secret"]


@pytest.mark.parametrize("path", UNKNOWN)
def test_an_unknown_url_is_a_problem(api, path):
    """404 not-found with every field of a problem, and nothing of the disk."""
    for method in ("GET", "POST", "DELETE"):
        reply = api.request(method, path, headers=JSON)
        assert (reply.status, reply.slug) == (404, "not-found")
        assert reply.json["detail"] and reply.json["title"] and "/work" not in reply.body.decode()


METHODS = [("GET", "/generate", {"POST", "OPTIONS"}), ("PUT", "/generate", {"POST", "OPTIONS"}),
           ("DELETE", "/generate", {"POST", "OPTIONS"}), ("BREW", "/generate", {"POST", "OPTIONS"}),
           ("POST", "/livez", {"GET", "HEAD", "OPTIONS"}), ("POST", "/readyz", {"GET", "HEAD", "OPTIONS"}),
           ("PATCH", "/health", {"GET", "HEAD", "OPTIONS"}), ("POST", "/metrics", {"GET", "HEAD", "OPTIONS"}),
           ("POST", "/cache", {"GET", "HEAD", "DELETE", "OPTIONS"}), ("DELETE", "/openapi.json", None)]


@pytest.mark.parametrize("method, path, allowed", METHODS)
def test_a_wrong_method_is_a_problem_and_says_which_is_right(api, method, path, allowed):
    """405 method-not-allowed, Allow kept."""
    reply = api.request(method, path)
    assert (reply.status, reply.slug) == (405, "method-not-allowed")
    assert "GET" in reply.headers["Allow"] or "POST" in reply.headers["Allow"]
    assert allowed is None or {name.strip() for name in reply.headers["Allow"].split(",")} == allowed


def test_a_problem_names_the_request_it_is_about(api):
    """instance is the path asked for, request_id the caller's own."""
    reply = api.request("GET", "/nowhere", headers={"X-Request-ID": "my.own-id_1"})
    assert reply.json["instance"] == "/nowhere" and reply.json["request_id"] == "my.own-id_1"


RESPONSES = {  # that a request can meet without keys, limits and stopped servers
    200: ("GET", "/livez", b""), 204: ("DELETE", "/cache", b""), 404: ("GET", "/x", b""),
    405: ("PUT", "/generate", b""), 400: ("POST", "/generate", b"{"), 422: ("POST", "/generate", b"{}"),
    413: ("POST", "/generate", b" " * 1_100_000), 502: ("POST", "/generate", b'{"prompt": "[[fault=oom]]"}')}


@pytest.mark.parametrize("status", RESPONSES)
def test_every_response_has_the_callers_request_id(api, status):
    """Whatever the outcome of the request, and its log line has the same id."""
    method, path, body = RESPONSES[status]
    sent = new_prompt().replace(" ", "-").replace("?", "")
    reply = api.request(method, path, body, {**JSON, "X-Request-ID": sent})
    assert reply.status == status
    assert reply.headers["X-Request-ID"] == sent and api.record_of(sent)["status"] == reply.status


BAD_IDS = ["", "x" * 129, "a b", "a,b", "é", "a/b", "<x>", "a;b", "a:b", '{"a":1}', "\"", "a\tb"]


@pytest.mark.parametrize("sent", BAD_IDS)
def test_a_request_id_that_is_none_is_replaced(api, sent):
    """1 to 128 characters of A-Za-z0-9._- are an id; anything else gets a new one."""
    ids = [api.get("/livez", headers={"X-Request-ID": sent.encode("latin-1")}).headers["X-Request-ID"]
           for _ in range(2)]
    assert sent not in ids and ids[0] != ids[1]


@pytest.mark.parametrize("sent", ["a", "x" * 128, "A-Za-z0-9._-", "...", "-"])
def test_a_request_id_that_is_one_is_kept(api, sent):
    """The bounds themselves are inside."""
    assert api.get("/livez", headers={"X-Request-ID": sent}).headers["X-Request-ID"] == sent


def test_without_a_request_id_each_request_gets_one_of_its_own(api):
    """No two are the same, and each is one that a caller could send."""
    ids = {api.get("/livez").headers["X-Request-ID"] for _ in range(20)}
    assert len(ids) == 20 and all(set(one) <= set("0123456789abcdefghijklmnopqrstuvwxyz._-") for one in ids)


@pytest.mark.parametrize("data,status", [
    (b"GET /livez HTTP/9.9\r\n\r\n", 400), (b"no http at all\r\n\r\n", 400),
    (b"GET /" + b"a" * 5000 + b" HTTP/1.1\r\n\r\n", 414),
    (b"GET /livez HTTP/1.1\r\nHost: x\r\n" + b"".join(b"X-%d: y\r\n" % n for n in range(200)) + b"\r\n", 431),
    (b"my secret prompt\r\n\r\n", 400)])
def test_what_is_no_http_is_refused_by_a_problem_too(api, data, status):
    """With an id that is in the log, where its bytes are not: they may be the end of somebody's prompt."""
    with api.send_raw(data) as client:
        head, _, body = client.makefile("rb").read().partition(b"\r\n\r\n")
    problem = json.loads(body)
    assert head.startswith(b"HTTP/1.1 %d " % status) and b"application/problem+json" in head
    assert problem["status"] == status and problem["request_id"].encode() in head
    until(lambda: problem["request_id"] in api.log_path.read_text())
    assert "secret" not in api.log_path.read_text() + api.stdout + api.stderr
