"""Files and pages that a client may keep: each has an ETag, and a client that has it gets 304."""

from pathlib import Path

from flask import Response, request

# The types are ours to tell: what the machine's own tables say of .js differs, and `nosniff` makes it matter.
TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml",
         ".png": "image/png"}


def type_of(name: str) -> str:
    """The media type of a file of this name; plain text where the name tells none."""
    return TYPES.get(Path(name).suffix, "text/plain")


def kept(body: bytes, mimetype: str, etag: str | None = None) -> Response:
    """A response that the client may keep, or 304 when it has it; the ETag is a hash of ``body`` where none is given.

    How long it may do so without asking is for the caller to say, in ``cache_control``.
    """
    response = Response(body, mimetype=mimetype)
    if etag is None:
        response.add_etag()
    else:
        response.set_etag(etag)
    response.make_conditional(request)
    return response
