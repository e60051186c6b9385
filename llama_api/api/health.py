"""The health endpoints, for load balancers, orchestrators and people. They never generate and never wait long."""

from flask import Blueprint, Response, jsonify

from ..cache import AnswerCache
from ..strict_json import Json
from ..upstreams import Fleet


def blueprint(fleet: Fleet, cache: AnswerCache, model: str) -> Blueprint:
    """GET /livez, /readyz and /health."""
    bp = Blueprint("health", __name__)

    @bp.get("/livez")
    def livez() -> Response:
        """Report that the process answers, without checking anything."""
        return jsonify(status="alive")

    @bp.get("/readyz")
    def readyz() -> tuple[Response, int]:
        """Report whether requests can be served."""
        reason = fleet.state().unready
        return (jsonify(status="not ready", reason=reason), 503) if reason else (jsonify(status="ready"), 200)

    @bp.get("/health")
    def health() -> tuple[Response, int]:
        """Report the state of the service."""
        state = health_of(fleet, cache, model)
        return jsonify(state), 503 if state["status"] == "unhealthy" else 200

    return bp


def health_of(fleet: Fleet, cache: AnswerCache, model: str) -> Json:
    """The body of GET /health (schemas.Health)."""
    state = fleet.state()
    away = "the shared cache cannot be reached" if cache.store and not cache.store.available else None
    degraded = "; ".join(trouble for trouble in (state.degraded, away) if trouble)
    reason = state.unusable or degraded
    return {"status": "unhealthy" if state.unusable else "degraded" if degraded else "healthy",
            **({"reason": reason} if reason else {}),
            "cache_size": cache.size()[0], "model": model, "ollama": state.ollama, "queue": state.queue,
            "hosts": state.hosts}
