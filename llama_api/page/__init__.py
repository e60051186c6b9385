"""The page for people, at /: a prompt, the service at a glance, and the pages on problems."""

from . import page, problems, stats
from .page import PageFiles
from .stats import Snapshot

__all__ = ["PageFiles", "Snapshot", "page", "problems", "stats"]
