"""The OpenAPI document is valid, complete, and true of the responses of the service."""

import copy
import json
import re
from contextlib import closing

import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

from llama_api.api import openapi
from llama_api.api.schemas import GenerateRequest
from llama_api.app import create_app
from llama_api.core import Models, Service
from llama_api.faults import HTTP_SLUGS, PROBLEMS, TABLE
from llama_api.settings import OllamaHost, Settings
from tests.support.double import answer_for

PROMPT = "Why is the sky blue?"
FOREIGN = {"/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/models", "/v1/models/{model}", *(
    f"/api/{name}" for name in (
        "generate chat embed embeddings show tags ps version status {action} {action}/{target}").split())}
EVENT = re.compile(r"(?:event: (error)\n)?data: (.+)\n\n")
ALWAYS = {"Content-Type", "Content-Length", "Date"}


def make_client(**settings):
    """A client of an app of its own, and its document."""
    if url := settings.pop("ollama_url", None):
        settings["ollamas"] = (OllamaHost(url),)
    client = create_app(Settings(log_file="", **settings)).test_client()
    return client, client.get("/openapi.json").json


def closed(document):
    """The document with every object closed, so that a field it does not know is a fault."""
    document = copy.deepcopy(document)
    for schema in document["components"]["schemas"].values():
        schema.setdefault("additionalProperties", False)
    return document


def check(document, schema, value):
    """Validate ``value`` against a schema of the document."""
    Draft202012Validator({**schema, "components": document["components"]}).validate(value)


def resolved(document, value):
    """A part of the document, or what it refers to."""
    if "$ref" not in value:
        return value
    found = document
    for key in value["$ref"].removeprefix("#/").split("/"):
        found = found[key]
    return found


def operations(document):
    """Path, method and operation of all there are."""
    return [(path, method, operation) for path, item in document["paths"].items() for method, operation in item.items()]


def answers(document):
    """Path, method, status and response of all there are."""
    return [(path, method, status, resolved(document, response)) for path, method, operation in operations(document)
            for status, response in operation["responses"].items()]


def examples(media):
    """The examples of a media type."""
    return [example["value"] for example in media.get("examples", {}).values()] + [
        media[key] for key in ("example",) if key in media]


@pytest.fixture(scope="module")
def document():
    return make_client()[1]


# The document

def test_document_is_valid(document):
    """It is OpenAPI 3.1, and every schema in it is JSON Schema."""
    OpenAPIV31SpecValidator(document).validate()
    assert document["openapi"].startswith("3.1.")
    for schema in document["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)


def test_document_has_every_route_and_no_other(document):
    """Each rule with each method is an operation, and the other way round; HEAD is one where probes use it."""
    app = create_app(Settings(log_file=""))
    routes = {(re.sub(r"<[^<>]*?(\w+)>", r"{\1}", rule.rule), method.lower())
              for rule in app.url_map.iter_rules() for method in rule.methods}
    described = {(path, method) for path, method, _ in operations(document)}
    assert described - {(path, "head") for path in ("/livez", "/readyz", "/health")} == {
        (path, method) for path, method in routes if method not in ("head", "options")}
    assert described <= routes


def test_a_route_without_a_description_fails_the_start():
    """A new endpoint cannot be forgotten here."""
    app = create_app(Settings(log_file=""))
    app.add_url_rule("/new", view_func=lambda: "")
    with pytest.raises(KeyError, match="/new"):
        openapi.document(app, GenerateRequest(Models(None, "llama3:8b")), keyed=False, limited=False)


def test_every_operation_says_what_it_does(document):
    """Each has an id of its own, a summary, a known tag, and the request's id on every response."""
    ids = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(ids) == len(set(ids))
    tags = {tag["name"] for tag in document["tags"]}
    for path, method, operation in operations(document):
        assert operation["summary"] and set(operation["tags"]) < tags
        assert {"$ref": "#/components/parameters/X-Request-ID"} in operation["parameters"]
    for path, method, status, response in answers(document):
        assert "X-Request-ID" in response["headers"], (path, method, status)


def test_every_error_is_documented_with_an_example(document):
    """Each row of the table, and what any URL can answer, at its status, where it can come."""
    found = {(status, value["type"]) for path, method, status, response in answers(document)
             for value in examples(response.get("content", {}).get("application/problem+json", {}))}
    rows = {(str(status), slug) for _, status, slug, _ in TABLE} | {
        ("500", "internal-error"), ("400", "bad-request"),
        *((str(status), slug) for status, slug in HTTP_SLUGS.items())}
    unknown = {"not-found", "method-not-allowed"}
    assert found == {("default" if slug in unknown else status, f"/problems/{slug}") for status, slug in rows}
    assert {slug for _, slug in rows} == PROBLEMS.keys()


def test_every_example_is_valid(document):
    """Examples of bodies, of fields, of parameters and of headers agree with their schemas."""
    strict, seen = closed(document), 0

    def walk(part):
        nonlocal seen
        if isinstance(part, list):
            return [walk(item) for item in part]
        if not isinstance(part, dict):
            return None
        if isinstance(part.get("examples"), list):
            for example in part["examples"]:
                check(strict, part, example)
                seen += 1
        elif isinstance(part.get("schema"), dict):
            for example in examples(part):
                check(strict, part["schema"], example)
                seen += 1
        return [walk(item) for key, item in part.items() if key not in ("example", "examples")]

    walk(document)
    assert seen > 60


def test_example_of_a_stream_follows_its_grammar(document):
    """The events of the example are those that the document describes."""
    media = document["paths"]["/generate"]["post"]["responses"]["200"]["content"]["text/event-stream"]
    check_stream(document, media["example"])


def test_request_schema_is_what_is_validated():
    """Types, bounds, defaults and closedness of the request follow the schema and the settings."""
    _, document = make_client(max_tokens_limit=50)
    OpenAPIV31SpecValidator(document).validate()
    schema = document["components"]["schemas"]["GenerateRequest"]
    assert schema["additionalProperties"] is False and schema["required"] == ["prompt"]
    brief = {name: {key: value for key, value in field.items() if key not in ("description", "examples")}
             for name, field in schema["properties"].items()}
    text = {"type": "string", "minLength": 1}
    assert brief == {
        "prompt": {**text, "pattern": r"\S"},
        "max_tokens": {"type": ["integer", "null"], "minimum": 1, "maximum": 50, "default": 50},
        "temperature": {"type": ["number", "null"], "minimum": 0, "maximum": 2, "default": 0.7},
        "system": {"type": ["string", "null"]},
        "stop": {"anyOf": [text, {"type": "array", "maxItems": 16, "items": text}, {"type": "null"}]},
        "seed": {"type": ["integer", "null"], "minimum": 0, "maximum": 2147483647},
        "top_p": {"type": ["number", "null"], "exclusiveMinimum": 0, "maximum": 1},
        "top_k": {"type": ["integer", "null"], "minimum": 1, "maximum": 1000},
        "stream": {"type": ["boolean", "null"], "default": False},
        "model": {"type": ["string", "null"], "enum": ["llama3:8b", None]}}
    for example in examples(document["paths"]["/generate"]["post"]["requestBody"]["content"]["application/json"]):
        check(document, schema, example)


FIELDS = [
    {}, {"prompt": ""}, {"prompt": " \n"}, {"prompt": 5}, {"prompt": None}, {"max_tokens": 0}, {"max_tokens": 8192},
    {"max_tokens": 8193}, {"max_tokens": "5"}, {"max_tokens": 5.0}, {"max_tokens": 5.5}, {"max_tokens": True},
    {"max_tokens": None}, {"temperature": 0}, {"temperature": 2}, {"temperature": 2.01}, {"temperature": -0.1},
    {"temperature": "0.7"}, {"temperature": False}, {"temperature": None}, {"system": ""}, {"system": None},
    {"system": 1}, {"stop": "x"}, {"stop": ""}, {"stop": []}, {"stop": ["x"] * 16}, {"stop": ["x"] * 17},
    {"stop": [""]}, {"stop": [1]}, {"stop": [None]}, {"stop": None}, {"seed": -1}, {"seed": 0}, {"seed": 2 ** 31 - 1},
    {"seed": 2 ** 31}, {"top_p": 0}, {"top_p": 0.01}, {"top_p": 1}, {"top_p": 1.01}, {"top_k": 0}, {"top_k": 1},
    {"top_k": 1000}, {"top_k": 1001}, {"stream": False}, {"stream": 0}, {"stream": "true"}, {"stream": None},
    {"model": "x"}, {"model": "llama3:8b"}, {"model": None}, {"model": 5}, {"num_ctx": 1}]


def test_document_and_service_accept_the_same_requests(double):
    """At each bound of each field both say yes, or both say no."""
    client, document = make_client(ollama_url=double.url)
    validator = Draft202012Validator(document["components"]["schemas"]["GenerateRequest"])
    for fields in FIELDS:
        body = {"prompt": PROMPT, **fields}
        assert client.post("/generate", json=body).status_code == (200 if validator.is_valid(body) else 422), fields


def test_keys_are_asked_for_only_where_they_are_configured(document):
    """Without keys nothing wants one; with them all but the health and documentation endpoints do, /v1 as Bearer."""
    assert not any("security" in operation for _, _, operation in operations(document))
    _, guarded = make_client(api_keys=("a-key-of-some-length",))
    OpenAPIV31SpecValidator(guarded).validate()
    wanted = {path: [name for scheme in operation["security"] for name in scheme]
              for path, _, operation in operations(guarded) if "security" in operation}
    assert wanted == {path: ["bearer"] if path.startswith("/v1/") else ["bearer", "apiKey"] for path in (
        "/generate", "/cache", "/metrics", "/stats", "/flights/{flight_id}", *FOREIGN)}
    assert document["components"]["securitySchemes"] == guarded["components"]["securitySchemes"]


# The responses of the service

def check_stream(document, text):
    """Every event of a stream is one that the document describes; returns their kinds."""
    assert "".join(match.group() for match in EVENT.finditer(text)) == text
    kinds = []
    for name, data in EVENT.findall(text):
        value = json.loads(data)
        kinds.append("Problem" if name else "StreamEnd" if value["done"] else "StreamPiece")
        check(document, document["components"]["schemas"][kinds[-1]], value)
    assert kinds[:-1] == ["StreamPiece"] * (len(kinds) - 1)
    return kinds


class Checked:
    """A client that holds every response against the document."""

    def __init__(self, **settings):
        self.client, document = make_client(**settings)
        self.document = closed(document)

    def send(self, method, path, status, template=None, **options):
        """Send a request that must end in ``status``; returns the response."""
        with closing(self.client.open(path, method=method, **options)) as response:
            assert response.status_code == status, response.text
            self._check(template or path, method.lower(), response)
            return response

    def _check(self, path, method, response):
        status = str(response.status_code)
        item = self.document["paths"][path]
        responses = item.get(method, next(iter(item.values())))["responses"]  # 405 stands under any other method
        described = resolved(self.document, responses.get(status) or responses["default"])
        self._check_headers(described["headers"], response)
        content = described.get("content")
        if not content or method == "head":
            assert response.data == b""
            return
        schema = content[response.mimetype].get("schema", {})
        if response.is_json:
            check(self.document, schema, response.json)
        elif response.mimetype == "text/event-stream":
            check_stream(self.document, response.text)

    def _check_headers(self, described, response):
        for name, header in described.items():
            header = resolved(self.document, header)
            assert name in response.headers or not header.get("required"), name
            if name in response.headers:
                value = response.headers[name]
                check(self.document, header["schema"], int(value) if header["schema"]["type"] == "integer" else value)
        ours = {name for name in self.document["components"]["headers"] if name in response.headers}
        assert ours - set(described) <= {"Allow"}, f"not documented: {ours - set(described)}"

    def ask(self, status, body=None, **options):
        return self.send("POST", "/generate", status, **{"json": {"prompt": PROMPT, **(body or {})}, **options})

    def problem(self, slug, status, body=None, **options):
        """Ask, and be refused with this problem."""
        assert self.ask(status, body, **options).json["type"] == f"/problems/{slug}"


def test_answers_are_as_documented(double):
    """Generated, cached, with a lifetime, renewed, bypassed and streamed."""
    api = Checked(ollama_url=double.url, cache_ttl=60)
    assert api.ask(200).json["response"] == answer_for(PROMPT)
    hit = api.ask(200)
    assert hit.json["cached"] and "Age" in hit.headers
    for directive in ("no-cache", "no-store", "max-age=0"):
        api.ask(200, headers={"Cache-Control": directive})
    for prompt in (PROMPT, "A new one?"):
        stream = api.ask(200, {"prompt": prompt, "stream": True})
        assert stream.mimetype == "text/event-stream"
    broken = api.ask(200, {"prompt": "[[fault=eof]]?", "stream": True})
    assert check_stream(api.document, broken.text)[-1] == "Problem"


def test_an_answer_without_figures_is_as_documented(double):
    """Figures that Ollama omits are null, which the document allows."""
    api = Checked(ollama_url=double.url)
    body = api.ask(200, {"prompt": "[[fault=missing_metrics]]"}).json
    assert body["metrics"]["input_tokens"] is None
    assert api.ask(200, {"prompt": "[[fault=reason_unknown]]"}).json["finish_reason"] is None


def test_refusals_are_as_documented(double):
    """Every problem that a caller can bring about."""
    api = Checked(ollama_url=double.url, max_body_bytes=1000)
    api.problem("malformed-json", 400, json=None, data="{", content_type="application/json")
    api.problem("body-too-large", 413, {"prompt": "x" * 1000})
    api.problem("unsupported-media-type", 415, json=None, data="x", content_type="text/plain")
    api.problem("invalid-request", 422, {"max_tokens": "many", "colour": "blue"})
    api.problem("prompt-too-long", 422, {"prompt": "[[fault=too_long]]"})
    api.problem("not-cached", 504, headers={"Cache-Control": "only-if-cached"})
    assert "Allow" in api.send("PUT", "/generate", 405).headers
    api.send("GET", "/docs/none", 404, "/docs/{asset}")


def test_failures_of_ollama_are_as_documented(double):
    """Every problem that Ollama can bring about."""
    api = Checked(ollama_url=double.url, timeout=0.5)
    api.problem("ollama-error", 502, {"prompt": "[[fault=html_502]]"})
    api.problem("model-not-found", 503, {"prompt": "[[fault=not_found]]"})
    api.problem("overloaded", 503, {"prompt": "[[fault=busy]]"})
    api.problem("ollama-timeout", 504, {"prompt": "[[fault=hang]]"})
    double.stop()
    api.problem("ollama-unavailable", 503)
    api = Checked(ollama_url=double.url)
    for method in ("GET", "HEAD"):
        api.send(method, "/readyz", 503)
        api.send(method, "/health", 503)
    double.start()


def test_guards_are_as_documented(double):
    """Wrong hosts, missing keys and too many requests."""
    api = Checked(ollama_url=double.url, trusted_hosts=("localhost",))
    api.problem("untrusted-host", 400, headers={"Host": "evil.example"})
    api = Checked(ollama_url=double.url, api_keys=("a-key-of-some-length",), rate_limit="4/hour")
    key = {"Authorization": "Bearer a-key-of-some-length"}
    api.problem("unauthorized", 401)
    assert api.ask(200, headers=key).headers["RateLimit-Limit"] == "4"
    api.send("GET", "/", 200)
    busy = api.ask(503, {"prompt": "[[fault=busy]]"}, headers=key)
    assert int(busy.headers["Retry-After"]) < 60, "the window's end stands in the place of the model's"
    for _ in range(2):
        api.ask(200, headers=key)
    limited = api.ask(429, headers=key)
    assert limited.json["type"] == "/problems/rate-limited"
    assert int(limited.headers["Retry-After"]) > 3000


def test_a_fault_of_ours_is_as_documented(double, monkeypatch):
    """An unforeseen error is a problem, too."""
    api = Checked(ollama_url=double.url)
    monkeypatch.setattr(Service, "ask", lambda *_: 1 / 0)
    api.problem("internal-error", 500)


def test_every_other_endpoint_is_as_documented(double):
    """Health, cache, metrics and the documentation itself, also when the copy at hand is good."""
    api = Checked(ollama_url=double.url)
    api.ask(200)
    for path in ("/livez", "/readyz", "/health"):
        api.send("GET", path, 200)
        api.send("HEAD", path, 200)
    api.send("GET", "/cache", 200)
    api.send("DELETE", "/cache", 204)
    api.send("GET", "/metrics", 200)
    etag = api.send("GET", "/stats", 200).headers["ETag"]
    api.send("GET", "/stats", 304, headers={"If-None-Match": etag})
    api.send("DELETE", "/flights/none", 404, "/flights/{flight_id}")
    for kind in ("text/html", "application/json"):
        api.send("GET", "/problems/overloaded", 200, "/problems/{slug}", headers={"Accept": kind})
    api.send("GET", "/problems/none", 404, "/problems/{slug}")
    html = api.send("GET", "/", 200, headers={"Accept": "text/html"}).text
    files = re.search(r'href="(page/\w+)/style.css"', html)[1]
    file, asset = "/page/{version}/{name}", "/docs/{asset}"
    for path, template in (("/", None), (f"/{files}/style.css", file), (f"/{files}/main.js", file),
                           (f"/{files}/icon.svg", file), ("/openapi.json", None), ("/docs", None),
                           ("/docs/initializer.js", asset), ("/docs/swagger-ui.css", asset),
                           ("/docs/favicon-32x32.png", asset)):
        tag = api.send("GET", path, 200, template).headers["ETag"]
        api.send("GET", path, 304, template, headers={"If-None-Match": tag})
