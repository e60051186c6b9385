"""The page and its files, read and hashed once, when the application is made."""

import hashlib
from pathlib import Path

from flask import Blueprint, Response, abort, request

from ..http import TYPES, conditional_response, type_of

STATIC = Path(__file__).parent / "static"
GREETING = b"Ollama is running"  # Ollama's own answer, which its clients check
FILE_SECONDS = 31_536_000  # for which a browser may keep a file; another version has another URL


class PageFiles:
    """The files of the page: their ``checksum``, and the ``folder`` of the URLs that this version has."""

    def __init__(self) -> None:
        self.contents = {path.name: path.read_bytes() for path in sorted(STATIC.iterdir()) if path.suffix in TYPES}
        self.checksum = hashlib.sha256(b"".join(self.contents.values())).hexdigest()[:16]
        self.folder = f"page/{self.checksum}"


def blueprint(files: PageFiles) -> Blueprint:
    """Make the blueprint of the page and its files."""
    bp = Blueprint("page", __name__)
    served = {name: content for name, content in files.contents.items() if name != "index.html"}
    html = files.contents["index.html"].replace(b"{{files}}", files.folder.encode())

    @bp.get("/")
    def page() -> Response:
        """Show the page to a browser, and tell other clients that the service runs."""
        # A client that names HTML is a browser; */* is what Ollama's clients send.
        named = any(kind.lower() == "text/html" and quality > 0 for kind, quality in request.accept_mimetypes)
        shown = (html, "text/html", files.checksum) if named else (GREETING, "text/plain", "greeting")
        response = conditional_response(*shown)
        response.cache_control.no_cache = True
        response.vary.add("Accept")
        return response

    @bp.get("/page/<version>/<name>")
    def page_file(version: str, name: str) -> Response:
        """Serve a file of the page; a version other than the page's own is unknown."""
        if version != files.checksum or name not in served:
            abort(404)
        response = conditional_response(served[name], type_of(name), f"{files.checksum}-{name}")
        response.cache_control.public = response.cache_control.immutable = True
        response.cache_control.max_age = FILE_SECONDS
        return response

    return bp
