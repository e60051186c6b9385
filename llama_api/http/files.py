"""Files and pages that a client may cache by their ETag, with 304 for a current copy."""

from pathlib import Path

from flask import Response, request

# Not from the machine's own tables, which differ for .js: with `nosniff` the type matters.
TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml",
         ".png": "image/png"}


def type_of(name: str) -> str:
    """The media type of a file of this name; plain text for unknown extensions."""
    return TYPES.get(Path(name).suffix, "text/plain")


def conditional_response(body: bytes, mimetype: str, etag: str | None = None) -> Response:
    """A response that the client may cache, or 304 if its copy is current; the default ETag is a hash of ``body``.

    The caller sets the lifetime in ``cache_control``.
    """
    response = Response(body, mimetype=mimetype)
    if etag is None:
        response.add_etag()
    else:
        response.set_etag(etag)
    response.make_conditional(request)
    return response
