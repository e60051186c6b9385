"""The two ways in which a request ends early."""
from __future__ import annotations

from collections.abc import Callable

Gone = Callable[[], bool]  # whether the client has closed its connection


class Refused(Exception):
    """The request ends with this HTTP status and `{"error": text}`."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class ClientGone(Exception):
    """The client has closed its connection."""
