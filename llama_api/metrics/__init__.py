"""What is counted and measured, and what the service does now and did lately."""

from .activity import Activity
from .history import History
from .machine import Machine
from .prometheus import CONTENT_TYPE_LATEST, SAVING, Metrics
from .reporter import Reporter
from .series import STEP
from .tracing import Tracing, open_tracing

__all__ = ["CONTENT_TYPE_LATEST", "SAVING", "STEP", "Activity", "History", "Machine", "Metrics", "Reporter", "Tracing",
           "open_tracing"]
