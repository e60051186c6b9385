"""A collector: takes spans and metrics by OTLP over HTTP, as protobuf, and shows what has come."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span as Wire

MESSAGES = {"/v1/traces": ExportTraceServiceRequest, "/v1/metrics": ExportMetricsServiceRequest}


class Span(NamedTuple):
    """A span as it came; ids in hexadecimal digits, times in nanoseconds."""

    name: str
    kind: str
    trace: str
    id: str
    parent: str
    state: str
    start: int
    end: int
    failed: bool
    attributes: dict
    resource: dict


class Receiver:
    """The collector. ``raw`` is all that came, undecoded; while ``answers`` is not set it takes but does not answer."""

    def __init__(self, port=0):
        self.spans, self.points, self.raw = [], {}, b""
        self.answers = threading.Event()
        self.answers.set()
        self._server = ThreadingHTTPServer(("127.0.0.1", port), self._handler())
        self.port = self._server.server_port
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *details):
        self.answers.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def of(self, trace):
        """The spans of a trace, the earliest first; when several begin at once, the longest first."""
        return sorted((span for span in list(self.spans) if span.trace == trace),
                      key=lambda span: (span.start, -span.end))

    def _take(self, path, body):
        request = MESSAGES[path].FromString(body)
        self.raw += body
        for one in request.resource_spans if path == "/v1/traces" else ():
            resource = values(one.resource.attributes)
            self.spans += [Span(
                span.name, Wire.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"), span.trace_id.hex(),
                span.span_id.hex(), span.parent_span_id.hex(), span.trace_state, span.start_time_unix_nano,
                span.end_time_unix_nano, span.status.code == 2, values(span.attributes), resource)
                for scope in one.scope_spans for span in scope.spans]
        for one in request.resource_metrics if path == "/v1/metrics" else ():
            for metric in [metric for scope in one.scope_metrics for metric in scope.metrics]:
                self.points[metric.name] = [(values(point.attributes), point.count, point.sum, metric.unit)
                                            for point in metric.histogram.data_points]  # cumulative: the last is all

    def _handler(receiver):
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                receiver._take(self.path, self.rfile.read(int(self.headers["Content-Length"])))
                receiver.answers.wait()
                self.send_response(200)
                self.send_header("Content-Type", "application/x-protobuf")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *details):
                """Say nothing."""

        return Handler


def values(attributes):
    """Attributes as they are in Python."""
    def plain(value):
        kind = value.WhichOneof("value")
        return [plain(one) for one in value.array_value.values] if kind == "array_value" else getattr(value, kind)

    return {attribute.key: plain(attribute.value) for attribute in attributes}
