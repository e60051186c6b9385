"""Spans and GenAI metrics by OTLP, for who asks for them; for all others its library is not even imported."""

import importlib
import os
from collections.abc import Callable
from typing import Any, Protocol

from ..settings import Settings
from ..trace import Trace
from ..upstreams import Tracer


class Tracing(Tracer, Protocol):
    """Who is told the spans of requests, and of the generations in them."""

    def begin(self, caller: Trace | None) -> Trace:
        """The span of a request that has come; ``caller`` is the one it came from, if it said so."""

    def request_ended(self, trace: Trace, record: dict[str, Any], method: str, path: str, endpoint: str, status: int,
                      began: float) -> None:
        """A request has ended that began at a monotonic time.

        ``record`` is what its log line tells, ``endpoint`` the pattern of its URL.
        """

    def close(self) -> None:
        """Send what has not been sent, within seconds."""


def open_tracing(settings: Settings, only_looks: Callable[[str], bool]) -> Tracing | None:
    """What exports to OTEL_EXPORTER_OTLP_ENDPOINT, None without one; what ``only_looks`` at the service has no span."""
    if not settings.otlp_endpoint or os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return None
    tracing: Tracing = importlib.import_module(".otlp", __package__).OTLP(only_looks)
    return tracing
