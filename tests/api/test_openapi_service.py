"""The OpenAPI document and the running service agree: each operation, as answered to each kind of caller."""

import json
import re

import pytest

from tests.api.test_openapi import check, closed, examples, operations, resolved
from tests.support.gunicorn_server import JSON, until

KEY = {"Authorization": "Bearer one"}
CALLERS = {"with a key": KEY, "without one": {}, "by a wrong name": {**KEY, "Host": "evil.example"}, "too often": KEY,
           "without an Ollama": {**KEY, "Cache-Control": "no-store"}}
SEEN = {"with a key": {200, 204, 403, 404}, "without one": {200, 401}, "by a wrong name": {200, 400},
        "too often": {200, 429}, "without an Ollama": {200, 503}}
FILLED = {"model": "llama3:8b", "asset": "swagger-ui.css", "flight_id": "none", "slug": "overloaded", "action": "pull",
          "target": "x", "name": "style.css"}
ELSEWHERE = {"Age", "Allow", "Retry-After"}  # with some answers of a status only


@pytest.fixture(scope="module")
def servers(shared_double, shared_serve):
    """One to call as one likes, and one that refuses all calls but the first."""
    return [shared_serve(shared_double, api_keys="one", trusted_hosts="127.0.0.1", rate_limit=rate)
            for rate in ("1000/hour", "1/hour")]


@pytest.fixture(scope="module")
def document(servers):
    return closed(servers[0].get("/openapi.json").json)


@pytest.fixture(scope="module")
def send(servers):
    """A function that sends an operation's first example."""
    page = servers[0].get("/", headers={"Accept": "text/html"}).body.decode()
    filled = {**FILLED, "version": re.search(r"page/(\w+)/", page)[1]}

    def send(server, method, path, operation, headers):
        path, body = path.format(**filled), None
        if "requestBody" in operation:
            headers = {**JSON, **headers}
            body = json.dumps(examples(operation["requestBody"]["content"]["application/json"])[0])
        return server.request(method.upper(), path, body, headers)

    return send


@pytest.mark.parametrize("caller", CALLERS)
def test_each_operation_answers_as_documented(servers, document, send, double, caller):
    """Its status, its headers, its media type and its body, with the title that the document gives a problem."""
    seen = set()
    if caller == "without an Ollama":
        double.stop()
        until(lambda: servers[0].get("/readyz").status == 503)
    for path, method, operation in operations(document):
        reply = send(servers[caller == "too often"], method, path, operation, CALLERS[caller])
        where, status = f"{method} {path} {reply.status}", str(reply.status)
        assert status in operation["responses"] or reply.status == 404, where
        described = resolved(document, operation["responses"].get(status) or operation["responses"]["default"])
        assert_headers(document, described["headers"], reply, where)
        seen.add(reply.status)
        if method == "head" or "content" not in described:
            assert reply.body == b"", where
            continue
        media = described["content"][reply.headers.get_content_type()]
        check(document, media.get("schema", {}), reply.json if "json" in reply.headers["Content-Type"]
              else reply.body.decode("utf-8", "replace"))
        if "problem" in reply.headers["Content-Type"]:
            told = media["examples"][reply.slug]["value"]
            assert (told["title"], told["status"]) == (reply.json["title"], reply.status), where
    assert seen >= SEEN[caller]


def assert_headers(document, described, reply, where):
    """All documented headers are present, except those of other answers of that status; ours are all documented."""
    for name, header in described.items():
        schema, value = resolved(document, header)["schema"], reply.headers[name]
        early = reply.status == 400 and name.startswith("RateLimit")  # the name is looked at before the rate
        assert value is not None or name in ELSEWHERE or early, f"{where}: no {name}"
        if value is not None:
            check(document, schema, int(value) if schema["type"] == "integer" else value)
    ours = {name for name in document["components"]["headers"] if name in reply.headers}
    assert ours <= described.keys(), f"{where}: {ours - described.keys()} is not told"
