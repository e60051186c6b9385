"""An answer as HTTP: the JSON body, the event stream, and the standard headers of a cache."""

from collections.abc import Iterator
from typing import Any

import orjson
from flask import Response, stream_with_context
from werkzeug.datastructures import RequestCacheControl
from werkzeug.http import parse_cache_control_header

from ..errors import describe, slug_of
from ..answer import Answer
from ..http.flask_app import LeanResponse
from ..metrics.prometheus import Metrics
from ..core.service import Directives, Reply, Service

CACHE_NAME = "llama-api"


def directives_of(header: str | None) -> Directives:
    """What a request's Cache-Control (RFC 9111 §5.2.1) asks for; what is unknown or malformed is ignored."""
    if not header:
        return Directives()
    found = parse_cache_control_header(header.lower(), cls=RequestCacheControl)  # directives have no case
    max_age = found.max_age
    return Directives(no_cache="no-cache" in found, no_store="no-store" in found,
                      only_if_cached="only-if-cached" in found, max_age=max_age if type(max_age) is int else None)


def plain(reply: Reply, service: Service, metrics: Metrics) -> Response:
    """The whole answer as JSON."""
    try:
        answer = reply.answer()
    finally:
        reply.close()
    body = orjson.dumps({"response": answer.text, **_ending(reply, answer, metrics)})
    headers = _cache_headers(reply, service, stored=reply.stored)
    return LeanResponse(body, headers=headers, content_type="application/json")


def stream(reply: Reply, service: Service, metrics: Metrics) -> Response:
    """The answer as server-sent events (WHATWG HTML §9.2), once there is something to send."""
    try:
        reply.start()
    except BaseException:
        reply.close()
        raise
    headers = _cache_headers(reply, service, stored=False)
    headers += [("Cache-Control", "no-store"), ("X-Accel-Buffering", "no")]
    events = stream_with_context(_events(reply, metrics))
    response = LeanResponse(events, headers=headers, content_type="text/event-stream; charset=utf-8")
    response.call_on_close(reply.close)
    return response


def _events(reply: Reply, metrics: Metrics) -> Iterator[bytes]:
    try:
        for piece in reply.pieces():
            yield _event({"response": piece, "done": False})
        answer = reply.answer()
        ending = _ending(reply, answer, metrics)
    except Exception as error:
        metrics.replied(reply, None)
        yield b"event: error\n" + _event(describe(error))
        return
    yield _event({"response": "", "done": True, **ending})


def _event(data: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(data) + b"\n\n"


def _ending(reply: Reply, answer: Answer, metrics: Metrics) -> dict[str, Any]:
    return {"model": answer.model, "finish_reason": answer.finish_reason, "cached": reply.cached,
            "metrics": metrics.replied(reply, answer)}


def _cache_headers(reply: Reply, service: Service, stored: bool) -> list[tuple[str, str]]:
    """Cache-Status (RFC 9211) and Age (RFC 9111 §5.1): what the cache did."""
    status = f"{CACHE_NAME}; hit" if reply.forwarded is None else f"{CACHE_NAME}; fwd={reply.forwarded}"
    if reply.failure is not None:
        status += f"; detail={slug_of(reply.failure)}"
    elif reply.result == "collapsed":
        status += "; collapsed"
    elif reply.entry is not None and (ttl := service.ttl(reply.entry)) is not None:
        status += f"; ttl={ttl}"
    elif stored:
        status += "; stored"
    headers = [("Cache-Status", status)]
    if reply.entry is not None:
        headers.append(("Age", str(int(service.age(reply.entry)))))
    return headers
