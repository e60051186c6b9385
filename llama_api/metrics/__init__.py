"""Counts, measurements, and the current and recent work of the service."""

from .activity import LAST, Activity
from .history import POINTS, History
from .machine import Machine
from .prometheus import CONTENT_TYPE_LATEST, RESULTS, SAVING, Metrics
from .reporter import Reporter
from .series import STEP
from .tracing import Tracing, open_tracing

__all__ = ["CONTENT_TYPE_LATEST", "LAST", "POINTS", "RESULTS", "SAVING", "STEP", "Activity", "History", "Machine",
           "Metrics", "Reporter", "Tracing", "open_tracing"]
