"""What goes through the queue: those who want a slot, and the slots."""

import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import NamedTuple, Protocol

from ..errors import OllamaError
from .upstream import Upstream

Kind = tuple[str, frozenset[Upstream]]  # what those have in common who may go to the same Ollamas


class Slot(NamedTuple):
    """A slot of an Ollama, taken ``at`` (monotonic)."""

    upstream: Upstream
    number: int
    at: float


class Choice(Protocol):
    """Which Ollamas a generation may go to."""

    def hosts(self, model: str) -> Sequence[Upstream]:
        """Those that are usable for ``model``."""

    def failure(self, model: str) -> OllamaError | None:
        """Why none is usable; None as long as it is worth a wait."""


class Waiter:
    """A generation that wants a slot of an Ollama that has ``model`` and is not one of ``tried``.

    ``prefers`` puts those that have a free slot in order, the best one first. ``since`` is when it came (monotonic).
    """

    def __init__(self, model: str, prefers: Callable[[list[Upstream]], Iterable[Upstream]],
                 tried: Collection[Upstream] = (), since: float | None = None):
        self.model, self.prefers, self.tried = model, prefers, frozenset(tried)
        self.since = time.monotonic() if since is None else since
        self.kind: Kind = model, self.tried
        self.token = ""  # of its leases
        self.woken: threading.Event | None = None  # made when it waits
        self.slot: Slot | None = None
        self.error: OllamaError | None = None
        self.served = False  # or gone
        self.before: int | None = None  # how many wait before it, as last told

    def wake(self) -> None:
        """Have it see what it has been given."""
        if self.woken is not None:
            self.woken.set()
