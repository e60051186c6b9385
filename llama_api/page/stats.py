"""GET /stats, what the page shows beside the prompt, and DELETE /flights/<id>, which ends a generation."""

import hashlib
import threading
import time
from collections.abc import Callable
from typing import Any

import orjson
from flask import Blueprint, Response, current_app, request

from ..errors import UnknownFlight
from ..http import NoContent
from ..metrics import STEP, Activity, History, Reporter
from ..settings import Settings

FRESH_SECONDS = 1.0  # that a body serves all who ask


class Snapshot:
    """The body of GET /stats and its version, made anew at most once a second.

    But at once when there are new points or a flight has been ended: no worker tells less of those than another did.
    """

    def __init__(self, settings: Settings, history: History, activity: Activity,
                 health: Callable[[], dict[str, Any]]):
        self._settings, self._history, self._activity, self._health = settings, history, activity, health
        self._lock = threading.Lock()
        self._made, self._revision = -FRESH_SECONDS, (0, 0)
        self._newest = b"", ""

    def newest(self) -> tuple[bytes, str]:
        """The body and its version."""
        with self._lock:
            revision = self._activity.revision, self._history.revision
            if revision != self._revision or time.monotonic() - self._made >= FRESH_SECONDS:
                body = self._body()
                self._newest = body, hashlib.blake2b(body, digest_size=12).hexdigest()
                self._made, self._revision = time.monotonic(), revision
            return self._newest

    def _body(self) -> bytes:
        end, series = self._history.snapshot()
        health = self._health()
        return orjson.dumps({"step": STEP, "end": end, "health": health, "series": orjson.Fragment(series),
                             "hosts": health["hosts"], **self._activity.snapshot(), "settings": self._settings.shown()})


def blueprint(snapshot: Snapshot, activity: Activity, reporter: Reporter) -> Blueprint:
    """GET /stats and DELETE /flights/<id>."""
    bp = Blueprint("stats", __name__)

    @bp.get("/stats")
    def stats() -> Response:
        """Tell the last 15 minutes in figures, and what the service does now."""
        reporter.start()  # where the server has no hook that has done so
        body, version = snapshot.newest()
        response = current_app.response_class(body, mimetype="application/json", headers=[
            ("Cache-Control", "private, no-cache"), ("Vary", "Authorization")])
        response.set_etag(version)
        response.make_conditional(request)
        return response

    @bp.delete("/flights/<flight_id>")
    def flight_cancel(flight_id: str) -> Response:
        """End a generation under way; its readers get the problem `cancelled`."""
        reporter.start()
        if not activity.cancel(flight_id):
            raise UnknownFlight
        return NoContent()

    return bp
