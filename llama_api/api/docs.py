"""The documentation as served: the OpenAPI document, and Swagger UI on it with nothing from another host."""

from importlib.metadata import distribution
from pathlib import Path

import orjson
from flask import Blueprint, Flask, Response, abort, current_app, request

from ..http import PAGE_POLICY
from ..settings import Settings
from .openapi import document
from .schemas import GenerateRequest

# Found without importing the package, which would bring in what it has for other frameworks.
STATIC = Path(str(distribution("swagger-ui-py").locate_file("swagger_ui/static")))
# The types are ours to tell: what the machine's own tables say of .js differs, and `nosniff` makes it matter.
ASSETS = {"swagger-ui-bundle.js": "text/javascript", "swagger-ui.css": "text/css", "index.css": "text/css",
          "favicon-32x32.png": "image/png"}
INITIALIZER = "initializer.js"  # a file of its own, as the page's policy forbids a script in the page
ASSET_SECONDS = 3600  # that a browser may keep an asset without asking
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
# validatorUrl: by default the page sends the address of the document to a validator on another host.
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

bp = Blueprint("documentation", __name__)


def init_app(app: Flask, settings: Settings, request_schema: GenerateRequest) -> None:
    """Serve the documentation of all routes that ``app`` has by now."""
    app.register_blueprint(bp)
    found = document(app, request_schema, keyed=bool(settings.keys), limited=bool(settings.rate_limit))
    app.extensions["llama_api_openapi"] = orjson.dumps(found)


@bp.get("/openapi.json")
def openapi_document() -> Response:
    """Describe every endpoint in OpenAPI 3.1."""
    return _kept(Response(current_app.extensions["llama_api_openapi"], mimetype="application/json"))


@bp.get("/docs")
def docs() -> Response:
    """Show the documentation as a page to read and try."""
    return _kept(Response(PAGE, mimetype="text/html", headers={"Content-Security-Policy": POLICY}))


@bp.get("/docs/<asset>")
def docs_asset(asset: str) -> Response:
    """Serve a file of the documentation's page."""
    if asset == INITIALIZER:
        return _kept(Response(SCRIPT, mimetype="text/javascript"), ASSET_SECONDS)
    if asset not in ASSETS:
        abort(404)
    return _kept(Response((STATIC / asset).read_bytes(), mimetype=ASSETS[asset]), ASSET_SECONDS)


def _kept(response: Response, seconds: int = 0) -> Response:
    """Let the client keep a response, and ask for a newer one by its ETag after ``seconds``."""
    response.add_etag()
    response.cache_control.public = True
    response.cache_control.max_age = seconds
    response.make_conditional(request)
    return response
