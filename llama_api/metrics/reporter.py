"""The background work of each worker: it samples, reports to the other workers, and ends flights on their request."""

import logging
import time
from collections.abc import Callable

from ..background import BackgroundThread
from .activity import Activity
from .history import History

logger = logging.getLogger(__name__)

TICK = 0.25  # seconds between two checks for flights to end
PUBLISH_TICKS = 2
COMPLAINT_SECONDS = 60.0


class Reporter:
    """The thread behind GET /stats. ``refresh`` brings gauges up to date before a sample is taken."""

    def __init__(self, activity: Activity, history: History, refresh: Callable[[], None]):
        self._activity, self._history, self._refresh = activity, history, refresh
        self._complained = -COMPLAINT_SECONDS
        self._thread = BackgroundThread("reporter", self._run)

    def start(self) -> None:
        """Begin, unless already begun."""
        self._thread.start()

    def close(self) -> None:
        """Report the last requests: this worker ends."""
        self._attempt(self._activity.publish)

    def _run(self) -> None:
        self._attempt(self._activity.join)
        self._attempt(self._history.sample)  # from here on counters grow
        ticks = 0
        while True:
            time.sleep(TICK)
            ticks += 1
            self._attempt(self._activity.obey)
            if ticks % PUBLISH_TICKS == 0:
                self._attempt(self._activity.publish)
            if self._history.due:
                self._attempt(self._refresh)
                self._attempt(self._sample)

    def _sample(self) -> None:
        if self._history.sample():
            self._activity.tidy()

    def _attempt(self, action: Callable[[], object]) -> None:
        try:
            action()
        except Exception as error:
            if time.monotonic() - self._complained >= COMPLAINT_SECONDS:
                self._complained = time.monotonic()
                logger.warning("the figures of /stats have gaps, because %s: %s", type(error).__name__, error,
                               exc_info=not isinstance(error, OSError))
