"""Spans and GenAI metrics by OTLP. The library is imported only if they are configured."""

import importlib
import os
from collections.abc import Callable
from typing import Any, Protocol

from ..settings import Settings
from ..trace import Trace
from ..upstreams import Tracer


class Tracing(Tracer, Protocol):
    """Receives the spans of requests, and of the generations in them."""

    def begin(self, caller: Trace | None) -> Trace:
        """Begin the span of a request; ``caller`` is its caller's span, if any."""

    def request_ended(self, trace: Trace, record: dict[str, Any], method: str, path: str, endpoint: str, status: int,
                      began: float) -> None:
        """A request has ended that began at a monotonic time.

        ``record`` has the fields of its log line, ``endpoint`` is the pattern of its URL.
        """

    def close(self) -> None:
        """Send what has not been sent, within seconds."""


def open_tracing(settings: Settings, only_looks: Callable[[str], bool]) -> Tracing | None:
    """The exporter to OTEL_EXPORTER_OTLP_ENDPOINT, None without one; no spans for endpoints that ``only_looks``."""
    if not settings.otlp_endpoint or os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return None
    tracing: Tracing = importlib.import_module(".otlp", __package__).OTLP(only_looks)
    return tracing
