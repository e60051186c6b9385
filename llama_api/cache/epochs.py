"""The line in time that a purge draws, as far as this process knows of it."""

import threading
from collections.abc import Callable


class Epochs:
    """The time between two purges is an epoch: ``number`` counts them here, ``name`` is what the shared store says.

    Whenever one begins, ``on_begin`` is called. Hold ``lock`` to do what must not happen across the line.
    """

    def __init__(self, on_begin: Callable[[], None]):
        self.number, self.name = 0, ""  # without a name: nothing is known of the store's
        self.lock = threading.RLock()
        self._on_begin = on_begin

    def begin(self, name: str | None) -> None:
        """There was a purge, after which the store's epoch is ``name``, None when it does not tell."""
        with self.lock:
            if name is None or name != self.name:
                self.number, self.name = self.number + 1, name or ""
                self._on_begin()

    def saw(self, name: str, since: int) -> None:
        """The store said ``name`` to a question that was asked in ``since``: another one means a purge elsewhere.

        A reply that a purge here has overtaken says nothing. The first name that is seen counts as a purge too: what
        was stored here before it may be of an earlier epoch.
        """
        with self.lock:
            if since == self.number:
                self.begin(name)
