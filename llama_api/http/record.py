"""The record of each request, which goes to the log and the metrics at its end, whatever happened."""

import logging
import re
import time
from typing import Any

from flask import Flask, Response, g, request

from ..logs import JsonLog, new_request_id
from ..metrics import Activity, Metrics, Tracing
from ..trace_context import TraceContext

LONGEST = 500  # characters of a caller's text in one field of the log
REQUEST_ID = "[A-Za-z0-9._-]{1,128}"  # valid ids from callers
_REQUEST_ID = re.compile(REQUEST_ID)


class Recorder:
    """Records every request by before/after-request hooks; views add their facts to ``g.record``."""

    def __init__(self, metrics: Metrics, activity: Activity, log: JsonLog, tracing: Tracing | None = None):
        self._metrics, self._activity, self._log, self._tracing = metrics, activity, log, tracing
        self.under_way = 0  # current requests of this process

    def init_app(self, app: Flask) -> None:
        """Record every request of ``app``."""
        app.before_request(self._begin)
        app.after_request(self._finish)

    def _begin(self) -> None:
        environ = request.environ
        sent = environ.get("HTTP_X_REQUEST_ID", "")
        record = {"request_id": sent if _REQUEST_ID.fullmatch(sent) else new_request_id()}
        trace = None
        if "HTTP_TRACEPARENT" in environ:
            trace = TraceContext.received(environ["HTTP_TRACEPARENT"], environ.get("HTTP_TRACESTATE", ""))
        if self._tracing is not None:
            trace = self._tracing.begin(trace)
        if trace is not None:
            record["trace_id"] = trace.trace_id
        self.under_way += 1
        g.record, g.trace, g.began = record, trace, time.monotonic()

    def _finish(self, response: Response) -> Response:
        record, began, req = g.record, g.began, request._get_current_object()  # type: ignore[attr-defined]
        response.headers["X-Request-ID"] = record["request_id"]
        facts = (req.method, req.path, req.remote_addr, req.url_rule.rule if req.url_rule is not None else "(unknown)",
                 g.trace)
        if response.is_streamed:
            response.call_on_close(lambda: self._end(record, began, response.status_code, facts))
        else:
            self._end(record, began, response.status_code, facts)
        return response

    def _end(self, record: dict[str, Any], began: float, status: int, facts: tuple[Any, ...]) -> None:
        """Count one request and log it."""
        self.under_way -= 1
        seconds = time.monotonic() - began
        method, path, client, endpoint, trace = facts
        self._metrics.request_ended(record, method, endpoint, status, seconds)
        self._activity.request_ended(record, endpoint, status, seconds)
        path = (path if path.isascii() and path.isprintable() else ascii(path)[1:-1])[:LONGEST]
        if self._tracing is not None:
            self._tracing.request_ended(trace, record, method, path, endpoint, status, began)
        self._log.write(logging.ERROR if status >= 500 else logging.INFO, {
            "message": f"{method} {path} {status}", **record, "method": method, "path": path, "status": status,
            "duration_ms": round(seconds * 1000, 3), "client": client and client[:LONGEST]})
