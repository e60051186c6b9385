"""The metrics for Prometheus, correct over all worker processes; the only module that uses its library."""

import os
from collections.abc import Iterator
from functools import cache
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from ..cache import AnswerCache
from ..faults import SLUGS
from ..settings import Settings
from ..upstreams import Ended, Fleet

__all__ = ["CONTENT_TYPE_LATEST", "SAVING", "Metrics"]

OUTCOMES = ("stop", "length", "error", "cancelled")
MATCHES = ("hit", "miss", "none")
RESULTS = ("hit", "stale", "miss", "collapsed", "refresh", "bypass")
SAVING = frozenset({"hit", "stale", "collapsed"})  # the results that spare Ollama a generation
ANSWERED = {"hit": "hit", "stale": "hit", "collapsed": "joined"}  # how a question was answered, else generated
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_SECONDS = (.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """Counts requests and generations (it is the fleet's Observer) and exposes the figures."""

    def __init__(self, settings: Settings):
        self._shared_store = settings.cache_url != "memory://"
        self._many = "PROMETHEUS_MULTIPROC_DIR" in os.environ
        self._registry = CollectorRegistry()
        self._evictions_told = 0
        self._define()
        self._begin_at_zero([host.name for host in settings.ollamas])
        self._bytes_limit.set(settings.cache_max_bytes if settings.cache_max_entries else 0)

    def request_ended(self, record: dict[str, Any], method: str, endpoint: str, status: int, seconds: float) -> None:
        """Count one request: ``record`` has the fields of its log line, ``endpoint`` is the pattern of its URL."""
        self._requests(method if method in _METHODS else "OTHER", endpoint, status).inc()
        self._durations(endpoint).observe(seconds)
        if slug := record.get("error"):
            self._errors(slug).inc()
        if result := record.get("cache"):
            self._results(result).inc()
            if "error" not in record and "inference_latency_ms" in record:  # without it the client left first
                self._answers(ANSWERED.get(result, "generated")).inc()
            if result in SAVING:
                self._saved_tokens.inc(record.get("output_tokens") or 0)
                self._saved_seconds.inc(record.get("saved_ms", 0.0) / 1000)

    # Facts about generations: upstreams.Observer

    def waiting(self, change: int) -> None:
        """One more (1) or less (-1) waits for a slot."""
        self._waiting.inc(change)

    def running(self, host: str, change: int) -> None:
        """One more (1) or less (-1) holds a slot of ``host``."""
        self._running(host).inc(change)

    def failed_over(self, host: str) -> None:
        """A generation that failed at ``host`` is tried at another Ollama."""
        self._failovers(host).inc()

    def prefix_matched(self, result: str) -> None:
        """A generation went to the Ollama that knows its beginning (``hit``), could not (``miss``), or had none."""
        self._matches(result).inc()

    def generation_ended(self, ended: Ended) -> None:
        """A generation that held a slot has ended."""
        self._generations(ended.outcome).inc()
        self._queue_wait.observe(ended.queue_seconds)
        self._inference.observe(ended.seconds)
        if ended.first_piece_seconds is not None:
            self._first_token.observe(ended.first_piece_seconds)
        if ended.completion is not None:
            self._prompt_tokens.inc(ended.completion.input_tokens or 0)
            self._cached_tokens.inc(ended.completion.cached_input_tokens or 0)
            self._generated_tokens.inc(ended.completion.output_tokens or 0)

    def store_failed(self, error: Exception) -> None:
        """The shared store failed."""
        self._store_errors.inc()

    # Exposition

    def exposition(self, cache: AnswerCache, fleet: Fleet) -> bytes:
        """The Prometheus text, over all workers."""
        self.refresh(cache, fleet)
        return generate_latest(self._all())

    def samples(self) -> Iterator[tuple[str, dict[str, str], float]]:
        """The name, the labels and the value of each sample, over all workers."""
        for metric in self._all().collect():
            for sample in metric.samples:
                yield sample.name, sample.labels, sample.value

    def refresh(self, cache: AnswerCache, fleet: Fleet) -> None:
        """Update the gauges that are polled."""
        self.note_cache(cache)
        for host in fleet.state().hosts:
            self._up(host["host"]).set(host["reachable"])
            self._slots(host["host"]).set(host["slots"])

    def note_cache(self, cache: AnswerCache) -> None:
        """Update the figures of the cache."""
        entries, size = cache.size()
        self._entries.set(entries)
        self._bytes.set(size)
        self.cache_written(cache)

    def cache_written(self, cache: AnswerCache) -> None:
        """An answer was stored. Counted at once, as each worker counts its own and a scrape reaches only one."""
        evictions = cache.evictions
        self._evictions.inc(max(0, evictions - self._evictions_told))
        self._evictions_told = evictions
        if cache.store is None:
            self._entries.set(len(cache.front))
            self._bytes.set(cache.front.bytes)

    def cache_counts(self) -> dict[str, int]:
        """The number of requests by result, and ``evictions``, over all workers."""
        counts: dict[str, int] = {}
        for name, labels, value in self.samples():
            if name == "llama_api_cache_requests_total":
                counts[labels["result"]] = int(value)
            elif name == "llama_api_cache_evictions_total":
                counts["evictions"] = int(value)
        return counts

    def _all(self) -> CollectorRegistry:
        if not self._many:
            return self._registry
        registry = CollectorRegistry()
        MultiProcessCollector(registry)
        return registry

    def _define(self) -> None:
        def counter(name: str, text: str, *labels: str) -> Any:
            metric = Counter(f"llama_api_{name}", text, labels, registry=self._registry)
            return cache(metric.labels) if labels else metric  # the library looks a label up in 10 µs, this in 0.1

        def histogram(name: str, text: str, *labels: str) -> Any:
            metric = Histogram(f"llama_api_{name}", text, labels, registry=self._registry, buckets=_SECONDS)
            return cache(metric.labels) if labels else metric

        def gauge(name: str, text: str, *labels: str, mode: Any = "livesum") -> Any:
            metric = Gauge(f"llama_api_{name}", text, labels, registry=self._registry, multiprocess_mode=mode)
            return cache(metric.labels) if labels else metric

        self._requests = counter("requests_total", "Requests answered.", "method", "endpoint", "status")
        self._durations = histogram("request_duration_seconds", "Time to answer a request.", "endpoint")
        self._errors = counter("errors_total", "Requests that ended in a problem.", "slug")
        self._results = counter("cache_requests_total", "Questions, by what the cache did.", "result")
        self._answers = counter("answers_total", "Questions that were answered, by where from.", "result")
        self._saved_tokens = counter("saved_tokens_total", "Output tokens that a hit or a joined call saved.")
        self._saved_seconds = counter(
            "saved_seconds_total", "Ollama's own time, loading left out, that a hit or a joined call saved.")
        self._generations = counter("generations_total", "Generations that held a slot.", "outcome")
        self._inference = histogram("inference_duration_seconds", "Time of a generation with its slot.")
        self._first_token = histogram("time_to_first_token_seconds", "From the slot to the first piece.")
        self._queue_wait = histogram("queue_wait_seconds", "Wait of a generation for its slot.")
        self._prompt_tokens = counter("prompt_tokens_total", "Tokens of prompts that Ollama read.")
        self._cached_tokens = counter("cached_prompt_tokens_total", "Of these, tokens that Ollama had read before.")
        self._generated_tokens = counter("generated_tokens_total", "Tokens that Ollama generated.")
        self._running = gauge("generations_running", "Generations that hold a slot.", "host")
        self._waiting = gauge("generations_waiting", "Generations that wait for a slot.")
        whole = "livemostrecent" if self._shared_store else "livesum"  # a shared store is one, in-process caches add up
        self._entries = gauge("cache_entries", "Answers in the cache.", mode=whole)
        self._bytes = gauge("cache_bytes", "Bytes of the answers in the cache.", mode=whole)
        self._bytes_limit = gauge("cache_bytes_limit", "Bytes of answers that the cache may hold.", mode=whole)
        self._evictions = counter("cache_evictions_total", "Answers evicted to keep within the bounds.")
        self._store_errors = counter("store_errors_total", "Failures of the shared store.")
        self._up = gauge("ollama_up", "Whether Ollama answers.", "host", mode="livemostrecent")
        self._slots = gauge("slots", "Generations that an Ollama takes at once.", "host", mode="livemostrecent")
        self._failovers = counter("failovers_total", "Failures at an Ollama that another was tried after.", "host")
        self._matches = counter("prefix_matches_total", "Generations, by whether they went to their prefix.", "result")

    def _begin_at_zero(self, hosts: list[str]) -> None:
        """Create each series with known labels at start, as a rate over a new series misses its first event."""
        for labelled, values in ((self._generations, OUTCOMES), (self._results, RESULTS), (self._matches, MATCHES),
                                 (self._answers, ("hit", "joined", "generated")), (self._errors, SLUGS),
                                 (self._running, hosts), (self._failovers, hosts)):
            for value in values:
                labelled(value)
