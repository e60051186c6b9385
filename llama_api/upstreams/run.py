"""What the fleet and those around it tell each other of one generation."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from ..answer import Completion, Piece
from ..waiting import Cancellation, Progress


class Run(Protocol):
    """A generation as the fleet sees it: told where it is, given the pieces, stopped by its cancellation."""

    started_at: float
    cancellation: Cancellation
    progress: Progress

    def publish(self, pieces: Sequence[Piece]) -> None:
        """Take the pieces that came together."""


class Generated(NamedTuple):
    """How a generation ended, in which build of the model (``digest``) and where; ``ended_at`` is monotonic."""

    completion: Completion
    digest: str | None
    host: str
    ended_at: float


class Ended(NamedTuple):
    """The facts of a generation that held a slot. ``outcome`` is stop, length, error or cancelled; times in seconds."""

    outcome: str
    host: str
    queue_seconds: float
    seconds: float
    first_piece_seconds: float | None
    completion: Completion | None


class Observer(Protocol):
    """Who is told the facts of each generation."""

    def waiting(self, change: int) -> None:
        """One more (1) or less (-1) waits for a slot."""

    def running(self, host: str, change: int) -> None:
        """One more (1) or less (-1) holds a slot of ``host``."""

    def failed_over(self, host: str) -> None:
        """What failed at ``host`` is tried at another."""

    def prefix_matched(self, result: str) -> None:
        """It has a slot where its beginning is known (``hit``), elsewhere (``miss``), or none is known (``none``)."""

    def generation_ended(self, ended: Ended) -> None:
        """A generation that held a slot has ended."""
