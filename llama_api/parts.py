"""The parts of one running service, put together in one place."""

import os
from dataclasses import dataclass
from typing import Any

from .cache.lru import AnswerCache, LRUCache
from .waiting import Watchdog
from .core.flights import Flights
from .upstreams.queue import Gate
from .upstreams.monitor import Breaker, Monitor
from .logs import JsonLog
from .metrics.prometheus import Metrics
from .ollama.client import OllamaClient
from .api.schemas import GenerateRequest
from .core.service import Service
from .settings import Settings
from .cache.guarded import GuardedStore, open_store


@dataclass(frozen=True, slots=True)
class Parts:
    """What the views work with."""

    settings: Settings
    log: JsonLog
    metrics: Metrics
    watchdog: Watchdog
    monitor: Monitor
    breaker: Breaker
    gate: Gate
    flights: Flights
    cache: AnswerCache
    service: Service
    generate_request: GenerateRequest

    @classmethod
    def assemble(cls, settings: Settings, log: JsonLog, front: LRUCache) -> "Parts":
        """Put a service together around the in-process cache ``front``."""
        metrics = Metrics(settings, log)
        watchdog = Watchdog()
        client = OllamaClient(settings, watchdog)
        monitor = Monitor(client, settings.model)
        breaker = Breaker()
        gate = Gate(settings.parallel, settings.queue, settings.queue_timeout,
                    directory=os.environ.get("PROMETHEUS_MULTIPROC_DIR"), peers=settings.workers > 1)
        flights = Flights()
        store = None
        if settings.cache_url != "memory://" and settings.cache_max_entries:
            store = GuardedStore(open_store(settings.cache_url, settings.cache_max_entries, settings.cache_max_bytes),
                                 on_error=metrics.store_failed)
        cache = AnswerCache(front, store, settings.cache_ttl, settings.cache_stale_if_error,
                            on_write=metrics.cache_written)
        service = Service(settings, client, monitor, breaker, cache, gate, flights, metrics)
        return cls(settings, log, metrics, watchdog, monitor, breaker, gate, flights, cache, service,
                   GenerateRequest(settings.max_tokens_limit))

    def health(self) -> dict[str, Any]:
        """The body of GET /health (schemas.Health)."""
        probe, gate = self.monitor.latest(), self.gate
        full = gate.running >= gate.slots and gate.waiting >= gate.limit
        troubles = [
            self.breaker.reason,
            "the queue is full" if full else None,
            "the shared cache cannot be reached" if self.cache.store and not self.cache.store.available else None]
        degraded = "; ".join(trouble for trouble in troubles if trouble)
        reason = probe.reason or degraded
        return {"status": "unhealthy" if probe.reason else "degraded" if degraded else "healthy",
                **({"reason": reason} if reason else {}),
                "cache_size": self.cache.size()[0], "model": self.settings.model,
                "ollama": {"reachable": probe.reachable, "version": probe.version,
                           "model_present": probe.model_present},
                "queue": {"running": gate.running, "waiting": gate.waiting, "slots": gate.slots, "limit": gate.limit}}

    def cache_stats(self) -> dict[str, Any]:
        """The body of GET /cache (schemas.CacheStats)."""
        self.metrics.note_cache(self.cache)
        counts = self.metrics.cache_counts()
        entries, size = self.cache.size()
        hits = counts.get("hit", 0) + counts.get("stale", 0)
        misses = counts.get("miss", 0) + counts.get("refresh", 0)
        return {"store": self.settings.cache_url.partition(":")[0].replace("rediss", "redis"),
                "entries": entries, "bytes": size, "max_entries": self.settings.cache_max_entries,
                "max_bytes": self.settings.cache_max_bytes, "hits": hits, "misses": misses,
                "collapsed": counts.get("collapsed", 0), "evictions": counts.get("evictions", 0),
                "hit_ratio": round(hits / (hits + misses), 4) if hits + misses else 0.0}
