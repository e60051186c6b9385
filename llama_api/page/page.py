"""The page and its files, read and hashed once, when the application is made."""

import hashlib
from pathlib import Path

from flask import Blueprint, Response, abort, request

STATIC = Path(__file__).parent / "static"
# The types are ours to tell: what the machine's own tables say of .js differs, and `nosniff` makes it matter.
TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
GREETING = b"Ollama is running"  # what Ollama says here; its clients look for it
FILE_SECONDS = 31_536_000  # that a browser may keep a file: another version has another URL


def blueprint() -> Blueprint:
    """Make the blueprint of the page and its files."""
    bp = Blueprint("page", __name__)
    files = {path.name: path.read_bytes() for path in sorted(STATIC.iterdir()) if path.suffix in TYPES}
    checksum = hashlib.sha256(b"".join(files.values())).hexdigest()[:16]
    html = files.pop("index.html").replace(b"{{files}}", f"page/{checksum}".encode())

    @bp.get("/")
    def page() -> Response:
        """Show the page to a browser, and say to other clients that the service runs."""
        # Whoever names HTML is a browser; */* says nothing, and is what Ollama's clients send.
        named = any(kind == "text/html" and quality > 0 for kind, quality in request.accept_mimetypes)
        response = _kept(html, "index.html", checksum) if named else _kept(GREETING, "", "greeting")
        response.cache_control.no_cache = True
        response.vary.add("Accept")
        return response

    @bp.get("/page/<version>/<name>")
    def page_file(version: str, name: str) -> Response:
        """Serve a file of the page; a version other than the page's own is unknown."""
        if version != checksum or name not in files:
            abort(404)
        response = _kept(files[name], name, f"{checksum}-{name}")
        response.cache_control.public = response.cache_control.immutable = True
        response.cache_control.max_age = FILE_SECONDS
        return response

    return bp


def _kept(body: bytes, name: str, etag: str) -> Response:
    """A response that the client may keep, or 304 when it has it."""
    response = Response(body, mimetype=TYPES.get(Path(name).suffix, "text/plain"))
    response.set_etag(etag)
    response.make_conditional(request)
    return response
