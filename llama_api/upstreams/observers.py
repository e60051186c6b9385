"""The records and protocols by which the fleet and its callers exchange facts about a generation."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from ..answer import Completion, Piece
from ..model_call import ModelCall
from ..trace_context import TraceContext
from ..waiting import Cancellation, Progress


class Run(Protocol):
    """A generation as the fleet sees it: it gets its progress and its pieces, and its cancellation stops it."""

    started_at: float
    cancellation: Cancellation
    progress: Progress

    def publish(self, pieces: Sequence[Piece]) -> None:
        """Take pieces that arrived together."""


class Generated(NamedTuple):
    """The end of a generation, the build of the model (``digest``) and the host; ``ended_at`` is monotonic."""

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
    """Receives the facts of each generation."""

    def waiting(self, change: int) -> None:
        """One more (1) or less (-1) waits for a slot."""

    def running(self, host: str, change: int) -> None:
        """One more (1) or less (-1) holds a slot of ``host``."""

    def failed_over(self, host: str) -> None:
        """A generation that failed at ``host`` is tried at another."""

    def prefix_matched(self, result: str) -> None:
        """A slot was taken where its beginning is known (``hit``), elsewhere (``miss``), or none is (``none``)."""

    def generation_ended(self, ended: Ended) -> None:
        """A generation that held a slot has ended."""


class Attempted(NamedTuple):
    """One generation at one Ollama and its end; times are monotonic. ``trace`` is its own span, if any."""

    call: ModelCall
    host: str
    trace: TraceContext | None
    began: float
    first_piece_at: float | None
    completion: Completion | None
    error: BaseException | None


class Tracer(Protocol):
    """Receives the spans of each generation."""

    def waited(self, trace: TraceContext | None, since: float, error: BaseException | None) -> None:
        """The wait for a slot has ended; ``trace`` is the span in which it waited, ``since`` is monotonic."""

    def attempted(self, attempted: Attempted) -> None:
        """A generation at one Ollama has ended."""
