"""Spans and GenAI metrics by OTLP, as a collector gets them from the service as it is run."""

import json
import os
import subprocess
import sys

import pytest

from tests.support.double import OllamaDouble
from tests.support.gunicorn_server import JSON, ROOT, free_port, new_prompt, together, until
from tests.support.otlp_receiver import Receiver

SPAN, SECRET, EMBEDDER = "00f067aa0ba902b7", "Xyzzy-confidential", "embedder:1b"
DEAR = {"llama_api.metrics.otlp", "opentelemetry.sdk.trace", "opentelemetry.proto", "google.protobuf"}
QUICK = {"OTEL_BSP_SCHEDULE_DELAY": "50", "OTEL_METRIC_EXPORT_INTERVAL": "100"}  # milliseconds


@pytest.fixture(scope="module")
def receiver():
    with Receiver() as receiver:
        yield receiver


@pytest.fixture(scope="module")
def others():
    """A second Ollama."""
    with OllamaDouble() as double:
        yield double


@pytest.fixture(scope="module")
def server(shared_double, others, shared_serve, receiver):
    settings = {"ollama_url": f"{shared_double.url},{others.url}", "models": EMBEDDER, "log_prompts": True}
    return exporting(shared_serve(start=False, **settings), receiver.url,
                     OTEL_RESOURCE_ATTRIBUTES="service.name=mine,deployment.environment.name=test")


@pytest.fixture
def api(server, shared_double, others):
    for double in (shared_double, others):
        double.reset()
        double.set_model(EMBEDDER, digest="b" * 64, capabilities=["embedding"])
    return server


def exporting(server, url, **variables):
    """``server``, started to export to ``url``."""
    server.variables.update(QUICK, OTEL_EXPORTER_OTLP_ENDPOINT=url, **variables)
    return server.start()


def traced(api, prompt, trace, flags="01", **fields):
    """Ask within a trace of a caller."""
    return api.ask(prompt, {"traceparent": f"00-{trace}-{SPAN}-{flags}", "tracestate": "vendor=1"}, **fields)


def spans_of(receiver, trace, count):
    """The spans of a trace, once ``count`` have come."""
    return until(lambda: len(found := receiver.of(trace)) >= count and found, what=f"{count} spans")


def test_the_spans_of_a_request_are_inside_that_of_its_caller(api, receiver, shared_double, others):
    """The request, the wait for a slot, the generation; Ollama gets the id of the last one."""
    trace = "a1" * 16
    reply = traced(api, new_prompt(), trace, seed=7)
    request, wait, generation = spans_of(receiver, trace, 3)
    assert [span.kind for span in (request, wait, generation)] == ["SERVER", "INTERNAL", "CLIENT"]
    assert request.parent == SPAN and wait.parent == generation.parent == request.id
    assert request.start <= wait.start <= wait.end <= generation.start <= generation.end <= request.end
    assert {span.state for span in (request, wait, generation)} == {"vendor=1"}
    assert not any(span.failed for span in (request, wait, generation))
    call, = shared_double.calls("/api/generate") + others.calls("/api/generate")
    assert call.headers["traceparent"] == f"00-{trace}-{generation.id}-01"
    assert request.name == "POST /generate" and request.attributes == {
        "http.request.method": "POST", "url.path": "/generate", "http.route": "/generate",
        "http.response.status_code": 200, "llama_api.cache": "miss",
        "llama_api.request_id": reply.headers["X-Request-ID"]}
    assert request.resource["service.name"] == "mine" and request.resource["deployment.environment.name"] == "test"
    assert request.resource["service.instance.id"] and request.resource["service.version"]


def test_a_generation_is_told_by_the_names_of_the_genai_conventions(api, receiver, shared_double, others):
    """The request's options, its cost, and how it ended."""
    trace = "a2" * 16
    reply = traced(api, new_prompt(), trace, seed=7, top_k=3)
    generation = spans_of(receiver, trace, 3)[-1]
    host = api.record_of(reply)["host"]
    assert generation.name == "text_completion llama3:8b"
    assert generation.attributes.pop("gen_ai.response.time_to_first_chunk") > 0
    assert generation.attributes == {
        "gen_ai.operation.name": "text_completion", "gen_ai.provider.name": "ollama", "gen_ai.request.stream": True,
        "gen_ai.request.model": "llama3:8b", "gen_ai.response.model": "llama3:8b", "gen_ai.request.seed": 7,
        "gen_ai.request.top_k": 3, "gen_ai.request.temperature": 0.7, "gen_ai.request.max_tokens": 100,
        "gen_ai.response.finish_reasons": ["stop"], "server.address": "127.0.0.1",
        "server.port": int(host.split(":")[1]), "gen_ai.usage.input_tokens": reply.json["metrics"]["input_tokens"],
        "gen_ai.usage.output_tokens": reply.json["metrics"]["output_tokens"]}


def test_a_hit_is_one_span(api, receiver):
    """Nothing was waited for and nothing generated."""
    prompt, trace = new_prompt(), "a3" * 16
    api.ask(prompt)
    traced(api, prompt, trace)
    traced(api, new_prompt(), "a4" * 16)
    spans_of(receiver, "a4" * 16, 3)  # so that what came before has come
    assert [span.attributes["llama_api.cache"] for span in receiver.of(trace)] == ["hit"]


def test_a_request_without_a_trace_begins_one(api, receiver):
    """Its id is in the log; those who only look at the service have no span."""
    looked, reply = api.get("/livez"), api.ask(new_prompt())
    request, *inside = spans_of(receiver, api.record_of(reply)["trace_id"], 3)
    assert request.parent == "" and {span.parent for span in inside} == {request.id}
    assert not receiver.of(api.record_of(looked)["trace_id"])


def test_what_the_caller_does_not_record_is_not_recorded(api, receiver, shared_double, others):
    """But passed on, with its flag."""
    trace = "a5" * 16
    traced(api, new_prompt(), trace, flags="00")
    traced(api, new_prompt(), "a6" * 16)
    spans_of(receiver, "a6" * 16, 3)
    assert not receiver.of(trace)
    calls = shared_double.calls("/api/generate") + others.calls("/api/generate")
    assert f"00-{trace}" in {call.headers["traceparent"][:35] for call in calls}
    assert {call.headers["traceparent"][-2:] for call in calls} == {"00", "01"}


@pytest.mark.parametrize("stream", [False, True], ids=["before a piece", "after one"])
def test_a_failure_is_told_by_its_slug(api, receiver, stream):
    """Of the generation and of the request, also when that had begun with status 200."""
    trace = ("b1" if stream else "b2") * 16
    traced(api, new_prompt("[[fault=eof]] [[after=3]]" if stream else "[[fault=oom]]"), trace, stream=stream)
    request, wait, generation = spans_of(receiver, trace, 3)
    assert request.failed and generation.failed and not wait.failed
    assert request.attributes["http.response.status_code"] == (200 if stream else 502)
    assert request.attributes["error.type"] == generation.attributes["error.type"] == "ollama-error"


def test_a_failure_that_another_ollama_makes_good_is_seen(api, receiver, shared_double):
    """Each try is a generation of its own in the request, which has not failed."""
    shared_double.set(fault="busy")

    def failed_over():
        traces = [os.urandom(16).hex() for _ in range(2)]  # at once, so that one goes to each Ollama
        replies = together(2, lambda n: traced(api, new_prompt("[[ttft=0.2]]"), traces[n]))
        assert [reply.status for reply in replies] == [200, 200]
        tried = {call.headers["traceparent"][3:35] for call in shared_double.calls("/api/generate")}
        return tried.intersection(traces)

    trace, *_ = until(failed_over)
    request, _, first, _, second = spans_of(receiver, trace, 5)
    assert (request.failed, first.failed, second.failed) == (False, True, False)
    assert first.parent == second.parent == request.id and first.attributes["error.type"] == "overloaded"
    assert first.attributes["server.port"] == shared_double.port != second.attributes["server.port"]


@pytest.mark.parametrize(("path", "body", "operation"), [
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": SECRET}]}, "chat"),
    ("/v1/embeddings", {"model": EMBEDDER, "input": SECRET}, "embeddings"),
    ("/generate", {"prompt": SECRET}, "text_completion")])
def test_the_metrics_of_each_operation_are_told(api, receiver, path, body, operation):
    """Durations and tokens, by model and Ollama; and no word of a prompt or an answer, whatever may be logged."""
    reply = api.request("POST", path, json.dumps({"model": "llama3:8b", **body}), {**JSON, "Cache-Control": "no-store"})
    assert reply.status == 200

    def points(name, **wanted):
        return [(point[1], point[2]) for point in receiver.points.get(f"gen_ai.client.{name}", ())
                if {"gen_ai.operation.name": operation, **wanted}.items() <= point[0].items()]

    until(lambda: points("operation.duration"), what="the durations")
    tokens = until(lambda: points("token.usage", **{"gen_ai.token.type": "input"}), what="the tokens")
    assert all(count and total for count, total in tokens)
    assert bool(points("operation.time_to_first_chunk")) == (operation != "embeddings")
    record = api.record_of(reply)
    assert SECRET in record["prompt"] and SECRET.encode() not in receiver.raw
    assert operation == "embeddings" or record["answer"].encode() not in receiver.raw


def test_a_collector_that_does_not_answer_keeps_nobody_waiting(serve, double):
    """Requests in the meantime are answered, and their spans sent once it answers again."""
    with Receiver() as receiver:
        api = exporting(serve(double, start=False), receiver.url)
        receiver.answers.clear()
        traced(api, new_prompt(), "c1" * 16)
        spans_of(receiver, "c1" * 16, 3)
        assert [traced(api, new_prompt(), f"d{n}" * 16).status for n in range(5)] == [200] * 5
        assert not receiver.of("d0" * 16)
        receiver.answers.set()
        for n in range(5):
            spans_of(receiver, f"d{n}" * 16, 3)


def test_the_last_spans_are_sent_when_the_service_stops(serve, double, receiver):
    """Those that no batch has taken yet; of each worker."""
    api = exporting(serve(double, start=False), receiver.url, OTEL_BSP_SCHEDULE_DELAY="60000")
    traced(api, new_prompt(), "c2" * 16)
    api.stop()
    assert len(receiver.of("c2" * 16)) == 3


def test_without_a_collector_all_is_well_but_for_a_line_in_the_log(serve, double):
    """One line, not one for each batch; and it stops as it should."""
    api = exporting(serve(double, start=False), f"http://127.0.0.1:{free_port()}")
    assert api.ask(new_prompt()).status == 200
    until(lambda: [record for record in api.records if "OTEL_EXPORTER_OTLP_ENDPOINT" in record["message"]])
    assert [api.ask(new_prompt()).status for _ in range(5)] == [200] * 5
    api.stop()
    told = [record for record in api.records if "OTEL_EXPORTER_OTLP_ENDPOINT" in record["message"]]
    assert len(told) == 1 and told[0]["level"] == "WARNING" and "opentelemetry" not in api.stderr


@pytest.mark.parametrize(("variables", "imported"), [
    ({}, False), ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, False), ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://h:1"}, True),
    ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://h:1", "OTEL_SDK_DISABLED": "true"}, False)])
def test_nothing_is_imported_for_who_does_not_export(variables, imported):
    """Neither the module nor its libraries, but for what redis takes of OpenTelemetry for itself where it is there."""
    program = ("import sys; from llama_api.app import create_app; create_app();"
               f" print(*sys.modules.keys() & {DEAR})")
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("LLAMA_API_", "OTEL_"))}
    environ |= {"LLAMA_API_LOG_FILE": "", **variables}
    found = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environ, capture_output=True, text=True,
                           check=True, timeout=60)
    assert set(found.stdout.split()) == (DEAR if imported else set())
