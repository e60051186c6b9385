"""The Ollamas and the one queue before them: a free slot takes the next generation."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from ..answer import Completion, Piece
from ..model_call import ModelCall
from ..waiting import Cancellation, Cancelled, Progress
from .queue import Gate
from .upstream import Upstream

PS_SECONDS = 1.0  # for /api/ps, which Ollama holds back while it loads or unloads a model


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


@dataclass(frozen=True, slots=True)
class State:
    """What the newest probes, the breakers and the queue tell: each reason is a sentence, None where there is none.

    ``unready`` keeps requests from being served, ``unusable`` says that no Ollama is usable, ``degraded`` what else is
    amiss. ``ollama``, ``queue`` and ``hosts`` are those of GET /health.
    """

    unready: str | None
    unusable: str | None
    degraded: str | None
    ollama: dict[str, Any]
    queue: dict[str, Any]
    hosts: list[dict[str, Any]]


class Observer(Protocol):
    """Who is told the facts of each generation."""

    def waiting(self, change: int) -> None:
        """One more (1) or less (-1) waits for a slot."""

    def running(self, host: str, change: int) -> None:
        """One more (1) or less (-1) holds a slot of ``host``."""

    def generation_ended(self, ended: Ended) -> None:
        """A generation that held a slot has ended."""


class Fleet:
    """Generates: waits for a free slot of a usable Ollama, and has that one answer."""

    def __init__(self, upstreams: Sequence[Upstream], gate: Gate, observer: Observer):
        self.upstreams, self.gate, self._observer = list(upstreams), gate, observer

    def stale_since(self, model: str, digest: str | None) -> float | None:
        """When (monotonic) another build of ``model`` than ``digest`` was first seen; None while it is the newest."""
        return self.upstreams[0].monitor.stale_since(model, digest)

    def state(self) -> State:
        """The state of all Ollamas and of the queue."""
        probe, gate, breaker = self.upstreams[0].monitor.latest(), self.gate, self.upstreams[0].breaker
        full = gate.running >= gate.slots and gate.waiting >= gate.limit
        troubles = [breaker.reason, "the queue is full" if full else None]
        return State(
            probe.reason, probe.reason, "; ".join(trouble for trouble in troubles if trouble) or None,
            {"reachable": probe.reachable, "version": probe.version, "model_present": probe.model_present},
            {"running": gate.running, "waiting": gate.waiting, "slots": gate.slots, "limit": gate.limit}, [])

    def inventory(self) -> list[dict[str, Any]]:
        """The models of the newest probe, as /api/tags tells them."""
        return list(self.upstreams[0].monitor.latest().models)

    def loaded(self) -> list[dict[str, Any]]:
        """The loaded models, as /api/ps tells them. Raises OllamaError."""
        return self.upstreams[0].client.loaded(PS_SECONDS)

    def show(self, model: str, **fields: Any) -> dict[str, Any]:
        """What /api/show tells of ``model``; ``fields`` are further ones of its request. Raises OllamaError."""
        return self.upstreams[0].client.show(model, **fields)

    def load(self, model: str, cancellation: Cancellation) -> None:
        """Have ``model`` loaded, and wait until it is. Raises OllamaError or Cancelled."""
        self.upstreams[0].client.load(model, cancellation)

    def generate(self, call: ModelCall, run: Run) -> Generated:
        """Generate the answer to ``call``. Raises OllamaError, QueueFull, QueueTimeout or Cancelled."""
        upstream = self.upstreams[0]
        digest = upstream.monitor.digest(call.model)
        outcome, completion = "error", None
        with upstream.breaker.admission() as admit, self._slot(upstream, run) as slot_at:
            admit()
            try:
                completion = upstream.client.generate(call, digest, run.cancellation, run.publish)
                outcome = completion.finish_reason or "error"
            except Cancelled:
                outcome = "cancelled"
                raise
            finally:
                ended_at, first = time.monotonic(), run.progress.first_piece_at
                self._observer.generation_ended(Ended(
                    outcome, upstream.host, slot_at - run.started_at, ended_at - slot_at,
                    None if first is None else first - slot_at, completion))
        return Generated(completion, digest, upstream.host, ended_at)

    @contextmanager
    def _slot(self, upstream: Upstream, run: Run) -> Iterator[float]:
        """Hold a slot for ``run`` from the time that is given, and tell the observer who waits and who runs."""
        self._observer.waiting(1)
        waits = True
        try:
            with self.gate.slot(run.cancellation):
                run.progress.slot_at, run.progress.host = slot_at, _ = time.monotonic(), upstream.host
                run.progress.state = "writing"
                self._observer.waiting(-1)
                waits = False
                self._observer.running(upstream.host, 1)
                try:
                    yield slot_at
                finally:
                    self._observer.running(upstream.host, -1)
        finally:
            if waits:
                self._observer.waiting(-1)
