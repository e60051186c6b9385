"""The export of spans and metrics by OTLP over HTTP; the only module that knows OpenTelemetry, and see ``tracing``.

A span is made when its facts are complete; its id is assigned earlier, as the request to Ollama carries it.
The library reads the variables of its specification (OTEL_EXPORTER_OTLP_HEADERS, OTEL_TRACES_SAMPLER and so on) itself.
"""

import logging
import os
import threading
import time
import uuid
from collections.abc import Callable
from functools import cache
from typing import Any
from urllib.parse import urlsplit

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.metrics import Histogram
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.trace import (NonRecordingSpan, SpanContext, SpanKind, StatusCode, TraceFlags, TraceState,
                                 set_span_in_context)

from .. import __version__
from ..faults import fault_of
from ..trace_context import TraceContext
from ..upstreams import Attempted
from ..waiting import Cancelled
from . import conventions as named

logger = logging.getLogger(__name__)

FLUSH_SECONDS = 2.0  # for which a worker's exit may wait for a collector
COMPLAINT_SECONDS = 60.0
CLOCK_STEP = 1_000_000_000  # nanoseconds: more than a measurement errs by; so the clock was set, or the machine slept
BATCH = "128"  # spans, which are encoded in 5 ms; the 20 ms of the default of 512 would block all requests

Attributes = dict[str, Any]


class OTLP:
    """Exports in the background of this process; what cannot be sent is dropped, logged and never waited for."""

    def __init__(self, is_monitoring: Callable[[str], bool]):
        self._only_looks, self._ids, self._last_epoch = is_monitoring, _Ids(), 0
        logging.getLogger("opentelemetry").handlers[:] = [_Complaints()]
        ours = {"service.name": "llama-api", "service.version": __version__, "service.instance.id": str(uuid.uuid4())}
        resource = Resource.create(ours).merge(OTELResourceDetector().detect())  # the operator's takes precedence
        self._spans = TracerProvider(resource=resource, id_generator=self._ids, shutdown_on_exit=False)
        os.environ.setdefault("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", BATCH)
        self._spans.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._spans.get_tracer(__package__, __version__)
        reader = PeriodicExportingMetricReader(OTLPMetricExporter())
        self._metrics = MeterProvider([reader], resource=resource, shutdown_on_exit=False)
        self._durations, self._first_chunks, self._tokens = (
            self._histogram(*metric) for metric in (named.DURATION, named.TIME_TO_FIRST_CHUNK, named.TOKEN_USAGE))

    def begin(self, caller: TraceContext | None) -> TraceContext:
        """Begin the span of a request, sampled or not as the operator or the caller decides."""
        trace = TraceContext.begun() if caller is None else caller.child()
        sampling = self._spans.sampler.should_sample(_inside(trace, True), int(trace.trace_id, 16), "", SpanKind.SERVER)
        return trace._replace(flags=trace.flags & ~1 | sampling.decision.is_sampled())

    def request_ended(self, trace: TraceContext, record: dict[str, Any], method: str, path: str, endpoint: str,
                      status: int, began: float) -> None:
        """Export the span of a request."""
        if self._only_looks(endpoint):
            return
        attributes = {named.METHOD: method, named.PATH: path, named.ROUTE: endpoint, named.STATUS: status,
                      named.REQUEST_ID: record["request_id"]}
        if result := record.get("cache"):
            attributes[named.CACHE] = result
        slug = record.get("error")  # with a good status it broke off a stream
        self._tell(trace, f"{method} {endpoint}", SpanKind.SERVER, began, attributes,
                   slug or str(status) if status >= 500 or (slug and status < 400) else None)

    def waited(self, trace: TraceContext | None, since: float, error: BaseException | None) -> None:
        """Export the span of a wait for a slot."""
        if trace is not None:
            self._tell(trace.child(), named.WAIT, SpanKind.INTERNAL, since, {}, _type_of(error))

    def attempted(self, attempted: Attempted) -> None:
        """Export the span and the metrics of a generation."""
        call, completion, seconds = attempted.call, attempted.completion, time.monotonic() - attempted.began
        operation, error = named.OPERATIONS[call.endpoint], _type_of(attempted.error)
        common = {named.OPERATION_NAME: operation, named.PROVIDER_NAME: named.PROVIDER, named.REQUEST_MODEL: call.model,
                  **_server(attempted.host)}
        self._durations.record(seconds, common | ({named.ERROR_TYPE: error} if error else {}))
        more: Attributes = {}
        if attempted.first_piece_at is not None and not call.embeds:
            more[named.FIRST_CHUNK] = attempted.first_piece_at - attempted.began
            self._first_chunks.record(more[named.FIRST_CHUNK], common)
        if completion is not None:
            common[named.RESPONSE_MODEL] = call.model
            for kind, tokens in (("input", completion.input_tokens), ("output", completion.output_tokens)):
                if tokens is not None:
                    self._tokens.record(tokens, common | {named.TOKEN_TYPE: kind})
            more |= _told(completion._asdict(), named.COUNTS)
            if completion.finish_reason is not None:
                more[named.FINISH_REASONS] = [completion.finish_reason]
        if attempted.trace is not None:
            self._tell(attempted.trace, f"{operation} {call.model}", SpanKind.CLIENT, attempted.began, {
                **common, named.STREAM: not call.embeds, **_told(call.options, named.OPTIONS), **more}, error)

    def close(self) -> None:
        """Send what has not been sent, as far as it can be within FLUSH_SECONDS."""
        flushes = [threading.Thread(target=flush, daemon=True) for flush in (
            self._spans.force_flush, self._metrics.force_flush)]
        for thread in flushes:
            thread.start()
        deadline = time.monotonic() + FLUSH_SECONDS
        for thread in flushes:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _tell(self, trace: TraceContext, name: str, kind: SpanKind, began: float, attributes: Attributes,
              error: str | None) -> None:
        """Export a span that began at a monotonic time and ends now."""
        if not trace.sampled:
            return
        end, self._ids.trace = time.monotonic_ns(), trace
        epoch = self._epoch()
        span = self._tracer.start_span(name, _inside(trace, kind is SpanKind.SERVER), kind, attributes,
                                       start_time=epoch + int(began * 1e9))
        if error is not None:
            span.set_attribute(named.ERROR_TYPE, error)
            span.set_status(StatusCode.ERROR)
        span.end(epoch + end)

    def _epoch(self) -> int:
        """When the monotonic clock was 0. Stable, as spans must not overlap by measurement errors."""
        epoch = time.time_ns() - time.monotonic_ns()
        if abs(epoch - self._last_epoch) > CLOCK_STEP:
            self._last_epoch = epoch
        return self._last_epoch

    def _histogram(self, name: str, unit: str, description: str, bounds: tuple[float, ...]) -> Histogram:
        return self._metrics.get_meter(__package__, __version__).create_histogram(
            name, unit, description, explicit_bucket_boundaries_advisory=bounds)


class _Ids(IdGenerator, threading.local):
    """The ids of the span that is being made."""

    trace: TraceContext

    def generate_trace_id(self) -> int:
        return int(self.trace.trace_id, 16)

    def generate_span_id(self) -> int:
        return int(self.trace.span_id, 16)


class _Complaints(logging.Handler):
    """Puts the library's complaints into our log, at most once a minute and without stack traces."""

    last = float("-inf")

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING and record.created - self.last >= COMPLAINT_SECONDS:
            self.last = record.created
            logger.warning("spans or metrics do not reach OTEL_EXPORTER_OTLP_ENDPOINT: %s", record.getMessage())


def _inside(trace: TraceContext, remote: bool) -> Context:
    """The context in which the span of ``trace`` begins: that of its parent, ``remote`` where that is the caller's."""
    if trace.parent is None:
        return Context()
    state = TraceState.from_header([trace.state]) if trace.state else None
    parent = SpanContext(int(trace.trace_id, 16), int(trace.parent, 16), remote, TraceFlags(trace.flags), state)
    return set_span_in_context(NonRecordingSpan(parent), Context())


@cache
def _server(host: str) -> Attributes:
    """The attributes for the address of ``host``, such as ``a:11434``."""
    parts = urlsplit(f"//{host}")
    return {named.SERVER_ADDRESS: parts.hostname, named.SERVER_PORT: parts.port}


def _told(values: dict[str, Any], names: dict[str, str]) -> Attributes:
    """The items of ``values`` that have one of ``names``."""
    return {name: values[key] for key, name in names.items() if values.get(key) is not None}


def _type_of(error: BaseException | None) -> str | None:
    """The kind of an error, one of few: the slug of its problem, or ``cancelled``."""
    if error is None:
        return None
    return fault_of(error).slug if isinstance(error, Exception) and not isinstance(error, Cancelled) else "cancelled"
