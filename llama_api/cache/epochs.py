"""The epochs between purges, as far as this process knows them."""

import threading
from collections.abc import Callable


class Epochs:
    """The current epoch, the time since the last purge: its ``number`` here, and its ``name`` in the shared store.

    ``on_begin`` is called when one begins. Hold ``lock`` for work that must not extend over a purge.
    """

    def __init__(self, on_begin: Callable[[], None]):
        self.number, self.name = 0, ""  # no name: the store's epoch is unknown
        self.lock = threading.RLock()
        self._on_begin = on_begin

    def begin(self, name: str | None) -> None:
        """Begin an epoch after a purge; ``name`` is the store's, None when unknown."""
        with self.lock:
            if name is None or name != self.name:
                self.number, self.name = self.number + 1, name or ""
                self._on_begin()

    def saw(self, name: str, since: int) -> None:
        """Note ``name`` from a reply to a request sent in epoch ``since``: a new name means a purge elsewhere.

        A reply overtaken by a purge here is ignored. The first name seen counts as a purge too, as the LRU may hold
        answers of an earlier epoch.
        """
        with self.lock:
            if since == self.number:
                self.begin(name)
