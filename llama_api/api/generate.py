"""The endpoints: each view parses, calls and presents."""

from flask import Blueprint, Response, current_app, g, jsonify, request
from prometheus_client import CONTENT_TYPE_LATEST

from ..parts import Parts
from .exchange import directives_of, plain, stream
from ..http.connection import gone_check, read_json_body

bp = Blueprint("api", __name__)


def _parts() -> Parts:
    parts: Parts = current_app.extensions["llama_api"]
    return parts


@bp.post("/generate")
def generate() -> Response:
    """Answer a prompt, from the cache or from the model."""
    parts, req = _parts(), request._get_current_object()  # type: ignore[attr-defined]
    body = read_json_body(req, parts.settings.max_body_bytes, parts.watchdog)
    question, streamed = parts.generate_request.read(body)
    parts.metrics.asked(question)
    directives = directives_of(req.headers.get("Cache-Control"))
    reply = parts.service.generate(question, directives, gone_check(req.environ))
    g.record["cache"] = reply.result
    present = stream if streamed else plain
    return present(reply, parts.service, parts.metrics)


@bp.get("/livez")
def livez() -> Response:
    """Say that the process answers; look at nothing."""
    return jsonify(status="alive")


@bp.get("/readyz")
def readyz() -> tuple[Response, int]:
    """Say whether requests can be served."""
    reason = _parts().monitor.latest().reason
    return (jsonify(status="not ready", reason=reason), 503) if reason else (jsonify(status="ready"), 200)


@bp.get("/health")
def health() -> tuple[Response, int]:
    """Tell the state of the service."""
    state = _parts().health()
    return jsonify(state), 503 if state["status"] == "unhealthy" else 200


@bp.get("/cache")
def cache_stats() -> Response:
    """Tell what is in the cache and what it was good for."""
    return jsonify(_parts().cache_stats())


@bp.delete("/cache")
def cache_clear() -> Response:
    """Remove every answer."""
    _parts().cache.clear()
    response = Response(status=204)
    del response.headers["Content-Type"]
    return response


@bp.get("/metrics")
def metrics() -> Response:
    """Expose all figures as Prometheus text."""
    parts = _parts()
    return Response(parts.metrics.exposition(parts.cache, parts.monitor), content_type=CONTENT_TYPE_LATEST)
