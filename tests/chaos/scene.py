"""The state shared by all actors of the chaos run: the stage, the questions, and the ledger of events."""

import threading
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

from tests.chaos.builds import Builds
from tests.chaos.invariants import Invariants
from tests.support.double import markers, pieces_for

TIMEOUT, QUEUE_TIMEOUT = 2.0, 2.0  # seconds
SLACK = 20.0  # seconds for a machine of few cores that does it all: what is not slow but stuck takes longer
TAKEOVER = 5.0  # seconds within which a killed leader's claim is taken over
PARALLEL = 2  # slots of each Ollama
OPENING = "Confidential, and only for the chaos"  # of every prompt; no 20 characters of it in a row may be logged
OPENINGS = [OPENING[at:at + 20] for at in range(len(OPENING) - 19)]


class Ledger:
    """The events: counts by kind and outcome, times, and everything that must not happen."""

    def __init__(self):
        self._lock = threading.Lock()
        self.outcomes, self.times, self.violations = defaultdict(Counter), defaultdict(list), []

    def note(self, kind, outcome, seconds=None):
        with self._lock:
            self.outcomes[kind][outcome] += 1
            if seconds is not None:
                self.times[kind, outcome].append(seconds)

    def blame(self, sentence):
        with self._lock:
            self.violations.append(sentence)


@dataclass
class Scene:
    """The stage that all actors share, and when what was done to it (monotonic)."""

    seed: int
    setup: Any
    services: list
    doubles: list
    store: Any
    builds: Builds
    began: float = 0.0
    ends: float = 0.0
    ledger: Ledger = field(default_factory=Ledger)
    invariants: Invariants = field(default_factory=Invariants)
    kills: list = field(default_factory=list)  # (time, service)
    purges: list = field(default_factory=list)  # times of purges that were answered

    @property
    def over(self):
        return time.monotonic() >= self.ends

    def killed(self, since, service=None):
        """Whether a worker was killed after ``since``, one of ``service`` if that is given."""
        return any(at >= since for at, victim in self.kills if service in (None, victim))

    def bound(self, since):
        """Seconds that a request begun at ``since`` may take: longer when the one it joined may have been killed."""
        taken_over = self.killed(since - TAKEOVER) or self.store.in_trouble(since - TAKEOVER)
        return TIMEOUT + QUEUE_TIMEOUT + SLACK + (TAKEOVER + TIMEOUT + QUEUE_TIMEOUT if taken_over else 0)


@dataclass(frozen=True)
class Question:
    """A request, and all that its answer may be."""

    fields: dict
    headers: dict
    unique: bool = False  # no other client asks it

    def expected(self, build):
        """The pieces and the finish reason in ``build``; the reason is None when the answer must never end."""
        prompt, stop = self.fields["prompt"], self.fields.get("stop", ())
        pieces, reason = pieces_for(prompt, self.fields.get("system"), self.fields.get("max_tokens", 100),
                                    [stop] if isinstance(stop, str) else stop, **build.changes)
        match markers(prompt).get("fault"):
            case "controls":
                pieces = (*pieces[:2], " \0\r\n", *pieces[2:])
            case "text_in_last":
                pieces = (*pieces, " fin")
            case "endless_tokens":
                pieces, reason = (*pieces[:2], *[" on"] * 20000), None
        return pieces, reason

    @property
    def control(self):
        return self.headers.get("Cache-Control", "")
