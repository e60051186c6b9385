"""GET /stats, the data of the page, and DELETE /flights/<id>, which ends a generation."""

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

FRESH_SECONDS = 1.0  # for which a body is served to all callers


class Snapshot:
    """The body of GET /stats and its version, rebuilt once a second.

    It is rebuilt at once for new points or an ended flight, so that no worker shows less of them than another did.
    """

    def __init__(self, settings: Settings, history: History, activity: Activity,
                 health: Callable[[], dict[str, Any]]):
        self._settings, self._history, self._activity, self._health = settings, history, activity, health
        self._lock = threading.Lock()
        self._made, self._revision = -FRESH_SECONDS, (frozenset[str](), 0)
        self._newest = b"", ""

    def newest(self) -> tuple[bytes, str]:
        """The body and its version."""
        if self._is_fresh(self._revision_now()):
            return self._newest
        health = self._health()  # outside of the lock, as it may wait for a probe
        with self._lock:
            revision = self._revision_now()
            if not self._is_fresh(revision):
                body = self._body(health)
                self._newest = body, hashlib.blake2b(body, digest_size=12).hexdigest()
                self._made, self._revision = time.monotonic(), revision
            return self._newest

    def _revision_now(self) -> tuple[frozenset[str], int]:
        return self._activity.ending(), self._history.revision

    def _is_fresh(self, revision: tuple[frozenset[str], int]) -> bool:
        return revision == self._revision and time.monotonic() - self._made < FRESH_SECONDS

    def _body(self, health: dict[str, Any]) -> bytes:
        end, series = self._history.snapshot()
        return orjson.dumps({"step": STEP, "end": end, "health": health, "series": orjson.Fragment(series),
                             "hosts": health["hosts"], **self._activity.snapshot(), "settings": self._settings.shown()})


def blueprint(snapshot: Snapshot, activity: Activity, reporter: Reporter) -> Blueprint:
    """GET /stats and DELETE /flights/<id>."""
    bp = Blueprint("stats", __name__)

    @bp.get("/stats")
    def stats() -> Response:
        """Report the figures of the last 15 minutes and the current work."""
        reporter.start()  # unless a hook of the server has started it
        body, version = snapshot.newest()
        response = current_app.response_class(body, mimetype="application/json", headers=[
            ("Cache-Control", "private, no-cache"), ("Vary", "Authorization")])
        response.set_etag(version)
        response.make_conditional(request)
        return response

    @bp.delete("/flights/<flight_id>")
    def flight_cancel(flight_id: str) -> Response:
        """End a generation; its readers get the problem `cancelled`."""
        reporter.start()
        if not activity.cancel(flight_id):
            raise UnknownFlight
        return NoContent()

    return bp
