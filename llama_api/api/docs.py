"""The documentation as served: the OpenAPI document, and Swagger UI, with nothing from another host."""

from functools import cache
from importlib.metadata import distribution
from pathlib import Path
from typing import NamedTuple, cast

import orjson
from flask import Blueprint, Flask, Response, abort
from flask.blueprints import BlueprintSetupState
from werkzeug.http import generate_etag

from ..http import PAGE_POLICY, conditional_response, type_of
from ..settings import Settings
from .openapi import document
from .schemas import GenerateRequest

# Found without importing the package, which would import its support for other frameworks.
STATIC = Path(str(distribution("swagger-ui-py").locate_file("swagger_ui/static")))
ASSETS = ("swagger-ui-bundle.js", "swagger-ui.css", "index.css", "favicon-32x32.png")
INITIALIZER = "initializer.js"  # a file of its own, as the page's policy forbids a script in the page
ASSET_SECONDS = 3600  # for which a browser may keep an asset without revalidation
PAGE = f"""\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>llama_api</title>
<link rel="icon" type="image/png" href="docs/favicon-32x32.png">
<link rel="stylesheet" href="docs/swagger-ui.css">
<link rel="stylesheet" href="docs/index.css">
</head>
<body>
<div id="swagger-ui"><noscript>This page needs JavaScript; the document itself is at
<a href="openapi.json">openapi.json</a>.</noscript></div>
<script src="docs/swagger-ui-bundle.js"></script>
<script src="docs/{INITIALIZER}"></script>
</body>
</html>
"""
# validatorUrl: by default the page sends the document's address to a validator on another host.
SCRIPT = """\
window.ui = SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  displayRequestDuration: true,
  validatorUrl: null
});
"""

POLICY = PAGE_POLICY.replace("style-src 'self'", "style-src 'self' 'unsafe-inline'")  # Swagger UI sets styles


class _File(NamedTuple):
    """A static file that may be kept for ``seconds`` before it is revalidated by its ETag."""

    content: bytes
    mimetype: str
    etag: str
    seconds: int = 0
    policy: str | None = None


def blueprint(settings: Settings, request_schema: GenerateRequest) -> Blueprint:
    """The documentation. Register it last, as it describes the routes registered before."""
    bp = Blueprint("documentation", __name__)
    page = _file(PAGE.encode(), "text/html", policy=POLICY)
    described: list[_File] = []

    @bp.get("/openapi.json")
    def openapi_document() -> Response:
        """Describe every endpoint in OpenAPI 3.1."""
        return _served(described[0])

    @bp.get("/docs")
    def docs() -> Response:
        """Show the documentation as a page on which calls can be tried."""
        return _served(page)

    @bp.get("/docs/<asset>")
    def docs_asset(asset: str) -> Response:
        """Serve a file of the documentation's page."""
        if asset != INITIALIZER and asset not in ASSETS:
            abort(404)
        return _served(_asset(asset))

    @bp.record_once
    def describe(state: BlueprintSetupState) -> None:
        found = document(cast(Flask, state.app), request_schema, keyed=bool(settings.keys),
                         limited=bool(settings.rate_limit))
        described.append(_file(orjson.dumps(found), "application/json"))

    return bp


@cache
def _asset(name: str) -> _File:
    """An asset, read at its first request."""
    if name == INITIALIZER:
        return _file(SCRIPT.encode(), type_of(name), ASSET_SECONDS)
    return _file((STATIC / name).read_bytes(), type_of(name), ASSET_SECONDS)


def _file(content: bytes, mimetype: str, seconds: int = 0, policy: str | None = None) -> _File:
    return _File(content, mimetype, generate_etag(content), seconds, policy)


def _served(file: _File) -> Response:
    """A file, or 304 for a client that has it."""
    response = conditional_response(file.content, file.mimetype, file.etag)
    response.cache_control.public = True
    response.cache_control.max_age = file.seconds
    if file.policy:
        response.headers["Content-Security-Policy"] = file.policy
    return response
