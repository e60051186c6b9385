"""Streams from outside: when pieces come, what they say, how they fail, who leaves."""

import pytest

from tests.support.double import answer_for, pieces_for
from tests.support.gunicorn_server import new_prompt, until

GONE = 2.0  # seconds in which an abandoned generation must stop
NOT_STORED = {"Cache-Control": "only-if-cached"}


@pytest.fixture(scope="module")
def server(shared_double, shared_serve):
    return shared_serve(shared_double, parallel=2)


@pytest.fixture
def double(double):
    double.set(slots=8)
    return double


def pieces_of(reply):
    """The texts of a stream's pieces, those that are not done."""
    return [data["response"] for event, data in reply.events if event == "message" and not data["done"]]


def test_a_stream_has_the_grammar_of_the_contract(api):
    """Pieces with done false, then one event with done true, no text and the other fields of a plain answer."""
    prompt = new_prompt()
    reply = api.ask(prompt, stream=True)
    *pieces, (event, last) = reply.events
    assert reply.status == 200 and reply.headers["Content-Type"] == "text/event-stream; charset=utf-8"
    assert reply.headers["Cache-Control"] == "no-store" and reply.headers["X-Accel-Buffering"] == "no"
    assert reply.cache == "llama-api; fwd=miss" and reply.headers["X-Request-ID"]
    assert [(event, data) for event, data in pieces] == [
        ("message", {"response": piece, "done": False}) for piece in pieces_for(prompt)[0]]
    metrics = last.pop("metrics")
    assert event == "message" and last == {
        "response": "", "done": True, "model": "llama3:8b", "finish_reason": "stop", "cached": False}
    assert metrics.keys() == api.ask(prompt).json["metrics"].keys() and metrics["tokens_per_second"] > 0


def test_the_first_event_comes_with_the_first_piece(api, double):
    """It does not wait for the second: the generation is still under way when the client has it."""
    prompt = new_prompt("[[gap=0.5]] [[tokens=4]]")
    with api.open_ask(prompt, stream=True) as stream:
        first = stream.event()
        assert double.running == 1 and double.calls("/api/generate")[-1].sent == 1
        assert first == ("message", {"response": pieces_for(prompt)[0][0], "done": False})
        second = stream.event()
        assert double.running == 1 and second[1]["response"] == pieces_for(prompt)[0][1]


@pytest.mark.parametrize("fault", ["", "split", "glued", "crlf", "long_line", "controls", "blank_line", "text_in_last",
                                   "extra_fields"])
def test_the_joined_pieces_are_the_plain_answer(api, double, fault):
    """Byte for byte, whatever way the bytes came from Ollama, generated or replayed."""
    markers = f"[[fault={fault}]]" if fault else ""
    first, second = new_prompt(markers), new_prompt(markers)
    plain, streamed = api.ask(first, headers={"Cache-Control": "no-store"}), api.ask(first, stream=True)
    assert streamed.text == plain.text == api.ask(first).text == api.ask(first, stream=True).text
    if fault not in ("controls", "text_in_last"):
        assert plain.text == answer_for(first)
    assert api.ask(second).text == api.ask(second, stream=True).text
    assert (double.generations[first], double.generations[second]) == (2, 1)


def test_a_hit_is_streamed_with_the_same_grammar(api, double):
    """A client can recognize a replay only by cached, Age and Cache-Status, not by its shape."""
    prompt = new_prompt()
    api.ask(prompt)
    reply = api.ask(prompt, stream=True)
    assert reply.cache == "llama-api; hit" and reply.headers["Age"] == "0"
    assert reply.headers["Content-Type"] == "text/event-stream; charset=utf-8"
    assert reply.headers["Cache-Control"] == "no-store"
    *pieces, (_, last) = reply.events
    assert pieces and all(not data["done"] and data.keys() == {"response", "done"} for _, data in pieces)
    assert (last["done"], last["response"], last["cached"], last["finish_reason"]) == (True, "", True, "stop")
    assert last["metrics"]["time_to_first_token_ms"] is None and last["metrics"]["tokens_per_second"] is None
    assert reply.text == answer_for(prompt) and double.generations[prompt] == 1


def test_a_streamed_answer_is_stored_for_plain_ones(api, double):
    """Streamed and plain requests share their entries."""
    prompt = new_prompt()
    api.ask(prompt, stream=True)
    reply = api.ask(prompt)
    assert reply.json["cached"] is True and reply.text == answer_for(prompt) and double.generations[prompt] == 1


@pytest.mark.parametrize("fault, status, slug", [
    ("oom", 502, "ollama-error"), ("reset", 502, "ollama-error"), ("eof_at_once", 502, "ollama-error"),
    ("not_found", 503, "model-not-found"), ("html_200", 502, "ollama-error"), ("too_long", 422, "prompt-too-long")])
def test_a_failure_before_the_first_piece_has_its_status(api, fault, status, slug):
    """No 200 is sent before there is something to send: the client gets a problem like any other."""
    prompt = new_prompt(f"[[fault={fault}]]")
    reply = api.ask(prompt, stream=True)
    assert (reply.status, reply.slug) == (status, slug)
    assert api.ask(prompt, NOT_STORED).slug == "not-cached"


def test_a_busy_ollama_is_tried_three_times(api, double):
    """After that, the caller gets a Retry-After."""
    prompt = new_prompt("[[fault=busy]]")
    reply = api.ask(prompt)
    assert (reply.status, reply.slug) == (503, "overloaded") and int(reply.headers["Retry-After"]) >= 1
    assert double.generations[prompt] == 3


@pytest.mark.parametrize("fault", ["eof", "error_line", "reset_midway", "close_midway", "cut_line", "invalid_json",
                                   "response_number", "array_line", "done_false", "context_error"])
def test_a_failure_after_the_first_piece_ends_the_stream_with_an_error(api, fault):
    """The pieces so far, then event: error with the problem, and nothing more; nothing is cached."""
    prompt = new_prompt(f"[[fault={fault}]]")
    reply = api.ask(prompt, stream=True)
    *pieces, (event, problem) = reply.events
    assert reply.status == 200 and event == "error"
    assert pieces and all(event == "message" and data["done"] is False for event, data in pieces)
    assert answer_for(prompt).startswith("".join(data["response"] for _, data in pieces))
    assert problem["type"] == "/problems/ollama-error" and problem["status"] == 502
    assert problem["request_id"] == reply.headers["X-Request-ID"] and problem["instance"] == "/generate"
    assert api.ask(prompt, NOT_STORED).slug == "not-cached"
    record = api.record_of(reply)
    assert record["error"] == "ollama-error"


def test_a_plain_request_sees_that_failure_as_a_status(api):
    """The same fault without a stream is 502, and no partial answer is shown or stored."""
    prompt = new_prompt("[[fault=eof]]")
    assert api.ask(prompt).slug == "ollama-error"
    assert api.ask(prompt, NOT_STORED).slug == "not-cached"


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
@pytest.mark.parametrize("markers", ["[[ttft=30]]", "[[gap=0.05]] [[fault=endless_tokens]]"],
                         ids=["before the first piece", "amid pieces"])
def test_a_client_that_leaves_stops_its_generation(api, double, stream, markers):
    """Ollama sees the disconnect within two seconds, and the slot is free again."""
    prompt = new_prompt(markers)
    with api.open_ask(prompt, stream=stream) as exchange:
        double.wait(running=1)
        if stream and "gap" in markers:
            assert exchange.event() and exchange.event()
    double.wait(GONE, running=0, closed_early=1)
    assert api.ask(prompt, NOT_STORED).slug == "not-cached"
    until(lambda: api.health()["queue"]["running"] == 0, GONE)


def test_a_client_that_leaves_while_the_model_thinks_stops_its_generation(api, double):
    """Nothing is sent at that time, so no failed write reveals that the client has left."""
    double.set_model("llama3:8b", capabilities=["completion", "thinking"])
    with api.open_ask(new_prompt("[[thinking=600]] [[gap=0.05]]"), stream=True):
        until(lambda: double.running == 1 and double.calls("/api/generate")[-1].sent >= 3)
    double.wait(GONE, running=0, closed_early=1)


def test_a_client_that_leaves_a_stream_is_logged(api, double):
    """The line has the status that was sent, the error, the time and the Ollama."""
    with api.open_ask(new_prompt("[[gap=0.05]] [[fault=endless_tokens]]"), stream=True) as exchange:
        assert exchange.event() and exchange.event()
        head = exchange.head
    record = api.record_of(head)
    assert (record["status"], record["error"], record["cache"]) == (200, "client-closed-request", "miss")
    assert record["inference_latency_ms"] > record["time_to_first_token_ms"] and record["host"]


def test_a_client_that_leaves_the_queue_is_never_generated(api, double):
    """Plain or streamed: its place is free for others, and Ollama never hears of it."""
    holders = [api.open_ask(new_prompt("[[ttft=30]]")) for _ in range(2)]
    double.wait(running=2)
    prompts = [new_prompt() for _ in range(2)]
    with api.open_ask(prompts[0]), api.open_ask(prompts[1], stream=True):
        until(lambda: api.health()["queue"]["waiting"] == 2)
    until(lambda: api.health()["queue"]["waiting"] == 0, GONE)
    for holder in holders:
        holder.close()
    double.wait(GONE, running=0)
    assert api.ask(new_prompt()).status == 200 and not any(double.generations[prompt] for prompt in prompts)


def test_a_client_that_leaves_does_not_take_the_answer_from_another(api, double):
    """A generation goes on as long as anybody waits for it."""
    prompt = new_prompt("[[gap=0.05]] [[tokens=12]]")
    with api.open_ask(prompt, stream=True) as first, api.open_ask(prompt, stream=True) as second:
        assert first.event() and second.event()
        first.close()
        assert answer_for(prompt).endswith("".join(iter(lambda: text_of(second.event()), "")))
    assert double.generations[prompt] == 1 and double.closed_early == 0


def text_of(event):
    """The text of an event; that of the last one is empty."""
    return event[1]["response"]


def test_a_late_joiner_of_a_stream_gets_the_pieces_so_far_at_once(api, double):
    """It has caught up before the next piece comes, and then gets each as it comes."""
    prompt = new_prompt("[[gap=0.25]] [[tokens=6]]")
    pieces = list(pieces_for(prompt)[0])
    with api.open_ask(prompt, stream=True) as first:
        for _ in range(3):
            first.event()
        with api.open_ask(prompt, stream=True) as late:
            assert [text_of(late.event()) for _ in range(3)] == pieces[:3]
            assert double.running == 1 and double.calls("/api/generate")[-1].sent < 6
            assert late.head.headers["Cache-Status"] == "llama-api; fwd=miss; collapsed"
            assert [text_of(late.event()) for _ in range(4)] == [*pieces[3:], ""]
    assert double.generations[prompt] == 1


def test_an_empty_answer_is_streamed_as_its_end_alone(api):
    """A model may say nothing: there is no piece, and the last event comes all the same."""
    prompt = new_prompt("[[tokens=3]]")
    first_word = pieces_for(prompt)[0][0]
    for _ in range(2):
        reply = api.ask(prompt, stream=True, stop=first_word)
        assert [data["done"] for _, data in reply.events] == [True] and reply.text == ""
    assert api.ask(prompt, stop=first_word).json["response"] == ""
