"""The waiters and the slots of the queue."""

import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import NamedTuple, Protocol

from ..errors import OllamaError
from .upstream import Upstream

Kind = tuple[str, frozenset[Upstream]]  # waiters of one kind may go to the same Ollamas


class Slot(NamedTuple):
    """A slot of an Ollama, taken ``at`` (monotonic)."""

    upstream: Upstream
    number: int
    at: float


class Choice(Protocol):
    """The choice of Ollamas for a generation."""

    def hosts(self, model: str) -> Sequence[Upstream]:
        """The usable Ollamas for ``model``."""

    def failure(self, model: str) -> OllamaError | None:
        """Why no Ollama is usable, None while waiting makes sense."""


class Waiter:
    """A generation that waits for a slot of an Ollama that has ``model`` and is not in ``tried``.

    ``prefers`` sorts the Ollamas with a free slot from best to worst. ``since`` is its arrival (monotonic).
    """

    def __init__(self, model: str, prefers: Callable[[list[Upstream]], Iterable[Upstream]],
                 tried: Collection[Upstream] = (), since: float | None = None):
        self.model, self.prefers, self.tried = model, prefers, frozenset(tried)
        self.since = time.monotonic() if since is None else since
        self.kind: Kind = model, self.tried
        self.token = ""  # of its leases
        self.woken: threading.Event | None = None  # set while it waits
        self.slot: Slot | None = None
        self.error: OllamaError | None = None
        self.served = False  # or has left
        self.before: int | None = None  # the number waiting before it, as last reported

    def wake(self) -> None:
        """Wake it, to take its slot or its error."""
        if self.woken is not None:
            self.woken.set()
