"""One vocabulary of figures: the response's metrics, the log's record and Prometheus are fed from here."""

import hashlib
import logging
import os
import random
import re
import time
from functools import cache
from typing import Any

import psutil
from flask import Flask, Response, g, request
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from ..cache.lru import AnswerCache
from ..errors import HTTP_SLUGS, INTERNAL_ERROR, TABLE
from ..core.flights import Flight
from ..answer import Answer, Question
from ..upstreams.monitor import Monitor
from ..logs import JsonLog
from ..ollama.protocol import Completion
from ..core.service import Reply
from ..settings import Settings

SAMPLE_SECONDS = 1.0
LONGEST = 500  # characters of a caller's text in one field of the log
FIRST_SAMPLE_SECONDS = 0.1
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
OUTCOMES = ("stop", "length", "error", "cancelled")
SLUGS = sorted({row[2] for row in TABLE} | {INTERNAL_ERROR[1], *HTTP_SLUGS.values()})
RESULTS = ("hit", "stale", "miss", "collapsed", "refresh", "bypass")
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_SECONDS = (.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Machine:
    """Use of the whole machine's processor and memory in percent, sampled at most once a second."""

    def __init__(self) -> None:
        self._times = self._cpu_times()
        self._sample = (0.0, 0.0)
        time.sleep(FIRST_SAMPLE_SECONDS)  # without a span to look at, the first figure would be a false 0.0
        self._taken = time.monotonic() - SAMPLE_SECONDS

    def sample(self) -> tuple[float, float]:
        """``cpu_usage_percent`` and ``memory_usage_percent``."""
        now = time.monotonic()
        if now - self._taken >= SAMPLE_SECONDS:
            self._taken = now
            (busy, total), (busy_before, total_before) = times, _ = self._cpu_times(), self._times
            self._times = times
            cpu = 100 * (busy - busy_before) / (total - total_before) if total > total_before else self._sample[0]
            self._sample = (round(min(100.0, max(0.0, cpu)), 1), psutil.virtual_memory().percent)
        return self._sample

    @staticmethod
    def _cpu_times() -> tuple[float, float]:
        # psutil.cpu_percent() remembers its last call by thread, and under gevent each request is a new one.
        times = psutil.cpu_times()
        total = sum(times) - getattr(times, "guest", 0) - getattr(times, "guest_nice", 0)
        return total - times.idle - getattr(times, "iowait", 0), total


class Metrics:
    """Gathers the figures of each request and generation (it is the service's Observer), logs and exposes them."""

    def __init__(self, settings: Settings, log: JsonLog):
        self._log, self._model, self._log_prompts = log, settings.model, settings.log_prompts
        self._shared_store = settings.cache_url != "memory://"
        self._machine = Machine()
        self._many = "PROMETHEUS_MULTIPROC_DIR" in os.environ
        self._registry = CollectorRegistry()
        self._evictions_told = 0
        self.under_way = 0  # requests of this process that have begun and not ended
        self._define()

    def init_app(self, app: Flask) -> None:
        """Put the before/after-request pair around every request of ``app``."""
        app.before_request(self._begin)
        app.after_request(self._finish)

    # What a request tells

    def asked(self, question: Question) -> None:
        """Note the question of this request."""
        g.record.update(model=self._model, cache="miss",
                        prompt_sha256=hashlib.sha256(question.prompt.encode()).hexdigest()[:12])
        if self._log_prompts:
            g.record["prompt"] = question.prompt

    def replied(self, reply: Reply, answer: Answer | None) -> dict[str, Any]:
        """Note what became of the question; returns the ``metrics`` of the response. ``answer`` is None on failure."""
        cpu, memory = self._machine.sample()
        figures, cached = reply.figures, reply.cached
        metrics: dict[str, Any] = {
            "inference_latency_ms": _milliseconds(figures.inference),
            "input_tokens": answer.input_tokens if answer else None,
            "output_tokens": answer.output_tokens if answer else None,
            "cpu_usage_percent": cpu, "memory_usage_percent": memory, "queue_ms": _milliseconds(figures.queue),
            "time_to_first_token_ms": None if cached else _milliseconds(figures.first_token),
            "tokens_per_second": None if cached or answer is None else answer.tokens_per_second}
        g.record.update(metrics, cache=reply.result)
        if answer and self._log_prompts:
            g.record["answer"] = answer.text
        return metrics

    # What a generation tells: service.Observer

    def waiting(self, change: int) -> None:
        """One more (1) or less (-1) waits for a slot."""
        self._waiting.inc(change)

    def running(self, change: int) -> None:
        """One more (1) or less (-1) holds a slot."""
        self._running.inc(change)

    def generation_ended(self, flight: Flight, outcome: str, completion: Completion | None) -> None:
        """A generation that held a slot has ended."""
        assert flight.slot_at is not None and flight.landed_at is not None
        self._generations(outcome).inc()
        self._queue_wait.observe(flight.slot_at - flight.started_at)
        self._inference.observe(flight.landed_at - flight.slot_at)
        if flight.first_piece_at is not None:
            self._first_token.observe(flight.first_piece_at - flight.slot_at)
        if completion is not None:
            self._prompt_tokens.inc(completion.input_tokens or 0)
            self._generated_tokens.inc(completion.output_tokens or 0)

    def store_failed(self, error: Exception) -> None:
        """The shared store failed."""
        self._store_errors.inc()

    # What is exposed

    def exposition(self, cache: AnswerCache, monitor: Monitor) -> bytes:
        """The Prometheus text, over all workers."""
        self.note_cache(cache)
        self._up.set(monitor.latest().reachable)
        return generate_latest(self._all())

    def note_cache(self, cache: AnswerCache) -> None:
        """Bring the figures of the cache up to date."""
        entries, size = cache.size()
        self._entries.set(entries)
        self._bytes.set(size)
        self.cache_written(cache)

    def cache_written(self, cache: AnswerCache) -> None:
        """An answer was stored. Told at once, for each worker must tell its own and a scrape reaches but one."""
        evictions = cache.evictions
        self._evictions.inc(max(0, evictions - self._evictions_told))
        self._evictions_told = evictions
        if cache.store is None:
            self._entries.set(len(cache.front))
            self._bytes.set(cache.front.bytes)

    def cache_counts(self) -> dict[str, int]:
        """How many requests had each result, and ``evictions``, over all workers."""
        counts: dict[str, int] = {}
        for metric in self._all().collect():
            for sample in metric.samples:
                if sample.name == "llama_api_cache_requests_total":
                    counts[sample.labels["result"]] = int(sample.value)
                elif sample.name == "llama_api_cache_evictions_total":
                    counts["evictions"] = int(sample.value)
        return counts

    def _all(self) -> CollectorRegistry:
        if not self._many:
            return self._registry
        registry = CollectorRegistry()
        MultiProcessCollector(registry)
        return registry

    def _begin(self) -> None:
        sent = request.environ.get("HTTP_X_REQUEST_ID", "")
        request_id = sent if _REQUEST_ID.fullmatch(sent) else new_request_id()
        g.record = {"request_id": request_id}
        self.under_way += 1
        g.began = time.perf_counter()

    def _finish(self, response: Response) -> Response:
        record, began, req = g.record, g.began, request._get_current_object()  # type: ignore[attr-defined]
        response.headers["X-Request-ID"] = record["request_id"]
        facts = (req.method, req.path, req.remote_addr, req.url_rule.rule if req.url_rule is not None else "(unknown)")
        if response.is_streamed:
            response.call_on_close(lambda: self._record(record, began, response.status_code, facts))
        else:
            self._record(record, began, response.status_code, facts)
        return response

    def _record(self, record: dict[str, Any], began: float, status: int, facts: tuple[Any, ...]) -> None:
        """Log one request and count it."""
        self.under_way -= 1
        seconds = time.perf_counter() - began
        method, path, client, endpoint = facts
        self._requests(method if method in _METHODS else "OTHER", endpoint, status).inc()
        self._durations(endpoint).observe(seconds)
        if slug := record.get("error"):
            self._errors(slug).inc()
        if result := record.get("cache"):
            self._results(result).inc()
            if result in ("hit", "stale", "collapsed"):
                self._saved_tokens.inc(record.get("output_tokens") or 0)
        path = (path if path.isascii() and path.isprintable() else ascii(path)[1:-1])[:LONGEST]
        self._log.write(logging.ERROR if status >= 500 else logging.INFO, {
            "message": f"{method} {path} {status}", **record, "method": method, "path": path, "status": status,
            "duration_ms": _milliseconds(seconds), "client": client and client[:LONGEST]})

    def _define(self) -> None:
        def counter(name: str, text: str, *labels: str) -> Any:
            metric = Counter(f"llama_api_{name}", text, labels, registry=self._registry)
            return cache(metric.labels) if labels else metric  # the library looks a label up in 10 µs, this in 0.1

        def histogram(name: str, text: str, *labels: str) -> Any:
            metric = Histogram(f"llama_api_{name}", text, labels, registry=self._registry, buckets=_SECONDS)
            return cache(metric.labels) if labels else metric

        def gauge(name: str, text: str, mode: Any = "livesum") -> Gauge:
            return Gauge(f"llama_api_{name}", text, registry=self._registry, multiprocess_mode=mode)

        self._requests = counter("requests_total", "Requests answered.", "method", "endpoint", "status")
        self._durations = histogram("request_duration_seconds", "Time to answer a request.", "endpoint")
        self._errors = counter("errors_total", "Requests that ended in a problem.", "slug")
        self._results = counter("cache_requests_total", "Questions, by what the cache did.", "result")
        self._saved_tokens = counter("saved_tokens_total", "Output tokens that a hit or a joined call saved.")
        self._generations = counter("generations_total", "Generations that held a slot.", "outcome")
        self._inference = histogram("inference_duration_seconds", "Time of a generation with its slot.")
        self._first_token = histogram("time_to_first_token_seconds", "From the slot to the first piece.")
        self._queue_wait = histogram("queue_wait_seconds", "Wait of a generation for its slot.")
        self._prompt_tokens = counter("prompt_tokens_total", "Tokens of prompts that Ollama read.")
        self._generated_tokens = counter("generated_tokens_total", "Tokens that Ollama generated.")
        self._running = gauge("generations_running", "Generations that hold a slot.")
        self._waiting = gauge("generations_waiting", "Generations that wait for a slot.")
        whole = "livemostrecent" if self._shared_store else "livesum"  # a shared store is one, in-process caches add up
        self._entries = gauge("cache_entries", "Answers in the cache.", whole)
        self._bytes = gauge("cache_bytes", "Bytes of the answers in the cache.", whole)
        self._evictions = counter("cache_evictions_total", "Answers evicted to keep within the bounds.")
        self._store_errors = counter("store_errors_total", "Failures of the shared store.")
        self._up = gauge("ollama_up", "Whether Ollama answers.", "livemostrecent")
        # At zero from the start: a rate over a series that is yet to come misses its first event.
        for labelled, values in ((self._generations, OUTCOMES), (self._results, RESULTS),
                                 (self._errors, SLUGS)):
            for value in values:
                labelled(value)


def new_request_id() -> str:
    """An id that no other request has."""
    return f"{random.getrandbits(64):016x}"


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 3)
