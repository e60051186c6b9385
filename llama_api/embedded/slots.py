"""The engine's parallel slots and their unbounded FIFO queue (the semaphore in llm/llama_server.go)."""
from __future__ import annotations

import collections
import contextlib
import threading
from collections.abc import Iterator

from .errors import ClientGone, Gone


class Slots:
    """Numbered slots, given in order of arrival."""

    def __init__(self, count: int) -> None:
        self.free, self.changed = list(range(count)), threading.Condition()
        self.waiting: collections.deque[object] = collections.deque()

    @contextlib.contextmanager
    def take(self, gone: Gone) -> Iterator[int]:
        """Wait for a slot, oldest request first, and yield its number; ClientGone if the client leaves first."""
        ticket = object()
        with self.changed:
            self.waiting.append(ticket)
            try:
                while not self.free or self.waiting[0] is not ticket:
                    if gone():
                        raise ClientGone
                    self.changed.wait(0.1)
                slot = self.free.pop()
            finally:
                self.waiting.remove(ticket)
                self.changed.notify_all()
        try:
            yield slot
        finally:
            with self.changed:
                self.free.append(slot)
                self.changed.notify_all()
