"""The slots of one Ollama in one process: their number, those held, and the waiters elsewhere."""

import os
import time
import weakref
from collections.abc import Callable

from .queue_order import QueueOrder
from .slot_files import SlotFiles, open_folder

WORK_HALVES = 60.0  # half-life of past work in seconds


class Slots:
    """At most ``number`` slots of the Ollama at ``url``, counted over all processes of the machine.

    The shared files are opened at the first use, so that a process that serves nothing leaves none, and closed with the
    last reference to this object.
    """

    def __init__(self, url: str, number: int, clock: Callable[[], float] = time.monotonic):
        self.number, self.running = number, 0
        self.url, self._clock = url, clock
        self._shared: tuple[SlotFiles, QueueOrder] | None = None
        self._work, self._work_at = 0.0, clock()

    def __repr__(self) -> str:
        return f"<Slots: {self.running} of {self.number} held>"

    def take(self, since: float) -> int | None:
        """Take a free slot for a waiter since ``since``, unless another process has an older one.

        Never waits.
        """
        if self.running >= self.number:
            return None
        files, order = self._opened()
        if order.older_elsewhere(since, self._held) or (slot := files.take()) is None:
            return None
        self.running += 1
        self._work, self._work_at = self.work + 1, self._clock()
        return slot

    def give_back(self, slot: int) -> None:
        """Give ``slot`` back."""
        self.running -= 1
        self._opened()[0].give_back(slot)

    def older_elsewhere(self, since: float) -> bool:
        """Whether another process has a waiter older than ``since`` for a slot that we give back."""
        return self._opened()[1].older_elsewhere(since, lambda: self._held() - 1)

    def announce(self, since: float | None) -> None:
        """Announce to the other processes since when our first one waits, None when none waits."""
        self._opened()[1].announce(since)

    @property
    def share(self) -> float:
        """The share of the slots that all processes hold together, 0 … 1."""
        return self.held / self.number

    @property
    def held(self) -> int:
        """The number of slots that all processes hold together."""
        return self.running if self._opened()[1].alone else self._held()

    @property
    def work(self) -> float:
        """The number of slots taken here recently; those of a minute ago count half."""
        return self._work * 0.5 ** ((self._clock() - self._work_at) / WORK_HALVES)

    def _held(self) -> int:
        return self.running + self._opened()[0].held_elsewhere()

    def _opened(self) -> tuple[SlotFiles, QueueOrder]:
        if self._shared is None:
            folder = open_folder(self.url)
            files, order = SlotFiles(folder, self.number), QueueOrder(folder, self.number, self._clock)
            close = weakref.finalize(self, _close, folder, files, order)
            try:
                order.register()
            except OSError:
                close()
                raise
            self._shared = files, order
        return self._shared


def _close(folder: int, files: SlotFiles, order: QueueOrder) -> None:
    files.close()
    order.close()
    os.close(folder)
