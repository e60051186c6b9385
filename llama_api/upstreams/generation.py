"""A generation on its way over one or several Ollamas."""

import time

from ..answer import Completion
from ..errors import OllamaError
from ..model_call import ModelCall
from .affinity import Chain, Match
from .observers import Ended, Run
from .upstream import Upstream
from .waiter import Slot


class Generation:
    """The history of a generation. ``deadline`` is ``timeout`` seconds after its first slot."""

    def __init__(self, call: ModelCall, run: Run, timeout: float):
        self.call, self.run, self._timeout = call, run, timeout
        self.since = time.monotonic()
        self.deadline: float | None = None
        self.tried: list[Upstream] = []
        self.failure: OllamaError | None = None  # of the last Ollama tried
        self.completion: Completion | None = None
        self.chain: Chain = []  # of its prompt, if affinity applies
        self.match: Match | None = None  # the match of its beginning when it got its slot
        self.outcome = "error"
        self._host = ""

    @property
    def flowing(self) -> bool:
        """Whether a piece of the answer has arrived."""
        return self.run.progress.first_piece_at is not None

    def seconds_left(self, most: float) -> float:
        """Seconds until the deadline, but at most ``most``."""
        return most if self.deadline is None else min(most, self.deadline - time.monotonic())

    def begin(self, slot: Slot) -> None:
        """Note that it has a slot."""
        progress, self._host = self.run.progress, slot.upstream.host
        progress.slot_at, progress.host, progress.state = slot.at, slot.upstream.host, "writing"
        if self.deadline is None:
            self.deadline = slot.at + self._timeout

    def failed(self, upstream: Upstream, error: OllamaError) -> None:
        """Note that it failed at ``upstream`` and will be tried at another."""
        self.tried.append(upstream)
        self.failure = error
        self.run.progress.host, self.run.progress.state = None, "waiting"

    def ended(self) -> Ended | None:
        """The facts of its end, None when it never had a slot."""
        slot_at, first = self.run.progress.slot_at, self.run.progress.first_piece_at
        if slot_at is None:
            return None
        return Ended(self.outcome, self._host, slot_at - self.run.started_at, time.monotonic() - slot_at,
                     None if first is None else first - slot_at, self.completion)
