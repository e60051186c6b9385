"""The order between the queues of a machine: each announces since when its first generation waits for an Ollama."""

import os
import struct
import time
from collections.abc import Callable

from ..file_locks import try_lock
from .slot_files import Unusable, open_file

ALIVE_SECONDS = 0.1  # without a sign of life, after which a queue is ignored; a waiting one gives a sign at every check
LOOK_SECONDS = 0.003  # between two checks for entries of new processes
# Since when the first one waits (0: none waits), the last sign of life, and the queue's number of slots.
_RECORD = struct.Struct("ddd")


class QueueOrder:
    """The entries, one file in ``folder`` per queue; ours is written, the others are read.

    Times are on the monotonic clock, which all processes of a machine share. An entry is held by a lock, so that a
    new process can take the entry of a dead one.
    """

    def __init__(self, folder: int, number: int, clock: Callable[[], float] = time.monotonic):
        self._folder, self._number, self._clock = folder, number, clock
        self._files: list[int | None] = []  # by entry; None if it cannot be opened
        self._ours: int | None = None
        self._announced = False
        self._looked_at = float("-inf")

    @property
    def alone(self) -> bool:
        """Whether no other process has used this folder since ours took its entry."""
        self._find_others()
        return all(file is None or file == self._ours for file in self._files)

    def register(self) -> None:
        """Take an entry, so that others see that they are not alone. Raises OSError if none can be made."""
        if self._ours is None:
            self._ours = self._free_entry()
            self._write(None)  # to allocate the file's block before the disk is full

    def announce(self, since: float | None) -> None:
        """Announce since when our first one waits (None: none waits); to be repeated while it waits."""
        if since is None and not self._announced:
            return
        self.register()
        self._announced = since is not None
        self._write(since)

    def older_elsewhere(self, since: float, held: Callable[[], int]) -> bool:
        """Whether another queue has an older waiter than ``since`` that may take a slot while ``held`` are taken."""
        self._find_others()
        alive = self._clock() - ALIVE_SECONDS
        for file in self._files:
            if file is None or file == self._ours:
                continue
            record = os.pread(file, _RECORD.size, 0)
            if len(record) == _RECORD.size:
                first, sign, number = _RECORD.unpack(record)
                if 0.0 < first < since and sign >= alive and (number >= self._number or held() < number):
                    return True
        return False

    def close(self) -> None:
        """Close the files, which frees our entry."""
        for file in self._files:
            if file is not None:
                os.close(file)
        self._files.clear()
        self._ours = None

    def _write(self, since: float | None) -> None:
        assert self._ours is not None
        try:
            os.pwrite(self._ours, _RECORD.pack(since or 0.0, self._clock(), self._number), 0)
        except OSError:  # a full disk: the order between queues is lost, but slots still work
            pass

    def _find_others(self) -> None:
        """Open the entries taken since the last check."""
        if (now := self._clock()) < self._looked_at + LOOK_SECONDS:
            return
        self._looked_at = now
        while True:
            try:
                os.stat(f"queue-{len(self._files)}", dir_fd=self._folder, follow_symlinks=False)
            except OSError:
                return
            try:
                file = self._opened(len(self._files), writable=False)
            except OSError:  # such as too many open files: the next check tries again
                return
            self._files.append(file)

    def _free_entry(self) -> int:
        """Lock the first free entry and return its file."""
        entry = 0
        while True:
            file = self._opened(entry, writable=True)
            if entry == len(self._files):
                self._files.append(None)
            if file is not None:
                if (before := self._files[entry]) is not None:
                    os.close(before)
                self._files[entry] = file
                if try_lock(file):
                    return file
            entry += 1

    def _opened(self, entry: int, writable: bool) -> int | None:
        try:
            return open_file(self._folder, f"queue-{entry}", writable)
        except Unusable:
            return None
