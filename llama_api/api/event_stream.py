"""Server-sent events (WHATWG HTML §9.2), as far as the doors need them."""

from typing import Any

import orjson

from ..waiting import Wait

CONTENT_TYPE = "text/event-stream; charset=utf-8"


def event(data: dict[str, Any]) -> bytes:
    """An event whose data is JSON."""
    return b"data: " + orjson.dumps(data) + b"\n\n"


def comment(wait: Wait) -> bytes:
    """A comment that reports the wait to a waiting caller."""
    before = "" if wait.before is None else f", {wait.before} before you"
    seconds = "" if wait.seconds is None else f", about {wait.seconds:.0f} s"
    return f": waiting{before}{seconds}\n\n".encode()
