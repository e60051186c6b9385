"""What is counted and measured."""

from .machine import Machine
from .prometheus import CONTENT_TYPE_LATEST, SAVING, Metrics

__all__ = ["CONTENT_TYPE_LATEST", "SAVING", "Machine", "Metrics"]
