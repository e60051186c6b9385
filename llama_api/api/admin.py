"""The operator's URLs: the cache, and the figures for Prometheus."""

from flask import Blueprint, Response, jsonify

from ..cache import AnswerCache
from ..core import Service
from ..http import NoContent
from ..metrics import CONTENT_TYPE_LATEST, Metrics
from ..settings import Settings
from ..strict_json import Json
from ..upstreams import Fleet


def blueprint(settings: Settings, service: Service, cache: AnswerCache, fleet: Fleet, metrics: Metrics) -> Blueprint:
    """GET and DELETE /cache, GET /metrics."""
    bp = Blueprint("admin", __name__)

    @bp.get("/cache")
    def cache_stats() -> Response:
        """Report the content and the use of the cache."""
        return jsonify(_stats(settings, cache, metrics))

    @bp.delete("/cache")
    def cache_clear() -> Response:
        """Remove every answer."""
        service.purge()
        return NoContent()

    @bp.get("/metrics")
    def prometheus() -> Response:
        """Expose all figures as Prometheus text."""
        return Response(metrics.exposition(cache, fleet), content_type=CONTENT_TYPE_LATEST)

    return bp


def _stats(settings: Settings, cache: AnswerCache, metrics: Metrics) -> Json:
    """The body of GET /cache (schemas.CacheStats)."""
    metrics.note_cache(cache)
    counts = metrics.cache_counts()
    entries, size = cache.size()
    hits = counts.get("hit", 0) + counts.get("stale", 0)
    misses = counts.get("miss", 0) + counts.get("refresh", 0)
    return {"store": settings.cache_url.partition(":")[0].replace("rediss", "redis"),
            "entries": entries, "bytes": size, "max_entries": settings.cache_max_entries,
            "max_bytes": settings.cache_max_bytes, "hits": hits, "misses": misses,
            "collapsed": counts.get("collapsed", 0), "evictions": counts.get("evictions", 0),
            "hit_ratio": round(hits / (hits + misses), 4) if hits + misses else 0.0}
