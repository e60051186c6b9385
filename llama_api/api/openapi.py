"""The OpenAPI document: made from the routes, the validating schemas and the table of errors, so it cannot drift."""

import inspect
import re
from collections import defaultdict
from typing import Any

from apispec import APISpec
from apispec.ext.marshmallow import MarshmallowPlugin
from flask import Flask
from marshmallow import Schema, fields, validate

from .. import __version__
from ..faults import INTERNAL_ERROR, PROBLEMS
from ..http import BEARER_ONLY, HEALTH_PATHS, OPEN_PATHS, PAGE_FILES, UNLIMITED
from ..strict_json import Json
from . import openapi_ollama, openapi_page, openapi_v1
from .openapi_operations import DETAILS, FIELD_FAULTS, HEADERS, INFO, PARAMETERS, TAGS, operations
from .openapi_parts import headers, ref
from .schemas import (MAX_STOPS, Alive, CacheStats, GenerateRequest, GenerateResponse, Health, Metrics, OllamaHealth,
                      Problem, QueueHealth, Ready, Stop)

_UNKNOWN = ("not-found", "method-not-allowed")  # of any URL, so they are listed under "default"
_GENERAL = {"untrusted-host", "unauthorized", "rate-limited", INTERNAL_ERROR[1], *_UNKNOWN}
_LIMIT_HEADERS = ("RateLimit-Limit", "RateLimit-Remaining", "RateLimit-Reset")
# Foreign APIs by the prefix of their URLs; they have error formats of their own.
FOREIGN: dict[str, Any] = {"/v1/": openapi_v1, "/api/": openapi_ollama}
_PROBLEM_HEADERS = {"401": ("WWW-Authenticate",), "429": ("Retry-After", *_LIMIT_HEADERS), "503": ("Retry-After",),
                    "default": ("Allow",)}


class StreamPiece(Schema):
    """The data of an event in a stream: the next piece of the answer."""

    response = fields.String(required=True, metadata={"example": "Sunlight is"})
    done = fields.Boolean(required=True, validate=validate.Equal(False))


class StreamEnd(GenerateResponse):
    """The data of the last event of a stream."""

    response = fields.String(required=True, validate=validate.Equal(""))
    done = fields.Boolean(required=True, validate=validate.Equal(True))


def document(app: Flask, request_schema: GenerateRequest, keyed: bool, limited: bool) -> Json:
    """Describe every route of ``app``. Raises KeyError for a route that operations() lacks.

    ``keyed`` says whether API keys are configured, ``limited`` whether a rate limit is.
    """
    plugin = MarshmallowPlugin()
    spec = APISpec("llama_api", __version__, "3.1.0", plugins=[plugin], info={"description": INFO},
                   tags=[{"name": name, "description": text} for name, text in TAGS.items()])
    assert plugin.converter is not None
    plugin.converter.add_attribute_function(_refine)
    _add_components(spec, request_schema)
    limit = next(check.max for check in request_schema.fields["max_tokens"].validators if hasattr(check, "max"))
    for name, schema in openapi_page.schemas().items():
        spec.components.schema(name, schema)
    known = operations(spec.components.schemas) | openapi_page.operations()
    for foreign in FOREIGN.values():
        known |= foreign.operations()
        for name, schema in foreign.schemas(limit).items():
            spec.components.schema(name, schema)
    for rule in app.url_map.iter_rules():
        path = re.sub(r"<[^<>]*?(\w+)>", r"{\1}", rule.rule)
        # HEAD is described where probes use it; INFO says that it works everywhere.
        methods = (rule.methods or set()) - {"OPTIONS"} - (set() if path in HEALTH_PATHS else {"HEAD"})
        view = app.view_functions[rule.endpoint]
        spec.path(path, operations={
            method.lower(): _operation(
                spec, known[path, method.replace("HEAD", "GET")], path, method, view, keyed, limited)
            for method in sorted(methods)})
    return spec.to_dict()


def _refine(converter: Any, field: fields.Field[Any], ret: Json) -> Json:
    """Complete the schema that apispec makes of a field; a default also becomes its example."""
    if isinstance(field, Stop):
        text = {"type": "string", "minLength": 1}
        ret["anyOf"] = [text, {"type": "array", "maxItems": MAX_STOPS, "items": text}, {"type": "null"}]
    for validator in field.validators:
        if isinstance(validator, validate.Range) and not validator.min_inclusive:
            ret["exclusiveMinimum"] = ret.pop("minimum")
    if ret.get("default", ...) is None:
        del ret["default"]  # the model's own default, which is unknown
    if "example" in ret:
        ret["examples"] = [ret.get("default", ret["example"])]
        del ret["example"]
    return {}


def _add_components(spec: APISpec, request_schema: GenerateRequest) -> None:
    for schema in (request_schema, Metrics(), GenerateResponse(), StreamPiece(), StreamEnd(),
                   Problem(), Alive(), Ready(), OllamaHealth(), QueueHealth(),
                   Health(), CacheStats()):
        name = type(schema).__name__
        spec.components.schema(name, schema=schema)
        spec.components.schemas[name]["description"] = f"{inspect.cleandoc(schema.__doc__ or '').partition('.')[0]}."
        if schema is not request_schema:
            del spec.components.schemas[name]["additionalProperties"]  # a later version may add fields
    for name, header in HEADERS.items():
        spec.components.header(name, header)
    for name, parameter in PARAMETERS.items():
        spec.components.parameter(name, "header", {"name": name, **parameter})
    spec.components.security_scheme("bearer", {"type": "http", "scheme": "bearer"})
    spec.components.security_scheme("apiKey", {"type": "apiKey", "in": "header", "name": "X-API-Key"})


def _operation(spec: APISpec, text: Json, path: str, method: str, view: Any, keyed: bool, limited: bool) -> Json:
    """The description of one method of one path; ``text`` is its entry in operations()."""
    head = method == "HEAD"
    limitable = path not in UNLIMITED and not path.startswith(PAGE_FILES)
    limit_headers = _LIMIT_HEADERS if limitable and limited else ()
    guarded = path not in OPEN_PATHS and not path.startswith(PAGE_FILES)
    slugs = {slug for slug in PROBLEMS if slug not in _GENERAL and path == "/generate"}
    slugs |= {INTERNAL_ERROR[1], *_UNKNOWN, *(["rate-limited"] if limitable else []),
              *(["unauthorized"] if guarded else []), *(["untrusted-host"] if path not in HEALTH_PATHS else [])}
    foreign = next((found for prefix, found in FOREIGN.items() if path.startswith(prefix)), None)
    answers = {status: {**answer, "headers": {
        **headers("X-Request-ID", *limit_headers), **answer.get("headers", {})}}
        for status, answer in text["responses"].items()}
    if head:
        for answer in answers.values():
            del answer["content"]
    summary = inspect.cleandoc(view.__doc__).rstrip(".")
    return {"operationId": f"{view.__name__}_head" if head else view.__name__,
            "summary": f"{summary} (without a body)" if head else summary, **text,
            "parameters": [*text.get("parameters", ()), "X-Request-ID"],
            **({"security": [{"bearer": []}, *([] if path.startswith(BEARER_ONLY) else [{"apiKey": []}])]}
               if keyed and guarded else {}),
            "responses": dict(sorted({**(
                _foreign_responses(spec, foreign, path, limit_headers) if foreign is not None
                else _problem_responses(spec, slugs, limit_headers)), **answers}.items()))}


def _foreign_responses(spec: APISpec, foreign: Any, path: str, limit_headers: tuple[str, ...]) -> Json:
    """The error responses of a foreign API, some with headers of their own."""
    return {status: {**response, "headers": {
        **headers("X-Request-ID", *_PROBLEM_HEADERS.get(status, ()), *limit_headers), **response.get("headers", {})}}
        for status, response in foreign.failures(path).items()}


def _problem_responses(spec: APISpec, slugs: set[str], limit_headers: tuple[str, ...]) -> dict[str, str]:
    """The names of these problems' responses, by their status."""
    by_status: dict[str, dict[str, tuple[int, str]]] = defaultdict(dict)
    for slug, row in PROBLEMS.items():
        if slug in slugs:
            by_status["default" if slug in _UNKNOWN else str(row[0])][slug] = row
    names = {status: "_".join([*rows, *(["limited"] if limit_headers else [])]) for status, rows in by_status.items()}
    for status, name in names.items():
        if name not in spec.components.responses:
            spec.components.response(name, _problem_response(status, by_status[status], limit_headers))
    return names


def _problem_response(status: str, rows: dict[str, tuple[int, str]], limit_headers: tuple[str, ...]) -> Json:
    """The response to all problems of one status; ``rows`` are their statuses and titles by slug."""
    examples = {slug: {"summary": title, "value": {
        "type": f"/problems/{slug}", "title": title, "status": number, "detail": DETAILS[slug],
        "instance": "/generate", "request_id": "9f1c2ab04d5e4c3f",
        **({"errors": FIELD_FAULTS} if slug == "invalid-request" else {})}} for slug, (number, title) in rows.items()}
    return {"description": "; ".join(f"`{slug}`: {title}" for slug, (_, title) in rows.items()) + ".",
            "headers": headers("X-Request-ID", *_PROBLEM_HEADERS.get(status, ()), *limit_headers),
            "content": {"application/problem+json": {"examples": examples, "schema": {
                "allOf": [ref("schemas", "Problem")], "properties": {
                    "type": {"enum": [f"/problems/{slug}" for slug in rows]},
                    "status": {"enum": sorted({number for number, _ in rows.values()})}}}}}}
