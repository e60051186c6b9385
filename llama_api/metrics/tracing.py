"""Spans and GenAI metrics by OTLP. The library is imported only if they are configured."""

import importlib
import os
from collections.abc import Callable
from typing import Any, Protocol

from ..settings import Settings
from ..trace_context import TraceContext
from ..upstreams import Tracer


class Tracing(Tracer, Protocol):
    """Receives the spans of requests, and of the generations in them."""

    def begin(self, caller: TraceContext | None) -> TraceContext:
        """Begin the span of a request; ``caller`` is its caller's span, if any."""

    def request_ended(self, trace: TraceContext, record: dict[str, Any], method: str, path: str, endpoint: str,
                      status: int, began: float) -> None:
        """A request has ended that began at a monotonic time.

        ``record`` has the fields of its log line, ``endpoint`` is the pattern of its URL.
        """

    def close(self) -> None:
        """Send what has not been sent, within seconds."""


def open_tracing(settings: Settings, is_monitoring: Callable[[str], bool]) -> Tracing | None:
    """The exporter to OTEL_EXPORTER_OTLP_ENDPOINT, None without one; no spans for endpoints that ``is_monitoring``."""
    if not settings.otlp_endpoint or os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return None
    tracing: Tracing = importlib.import_module(".otlp", __package__).OTLP(is_monitoring)
    return tracing
