"""The service with fakes around it: a fleet that writes, fails or waits on request, and the real cache and flights."""

import threading
import time

from llama_api.answer import Completion, Piece
from llama_api.cache import AnswerCache, Entry, GuardedStore, LRUCache
from llama_api.core import Directives, Flights, Service
from llama_api.upstreams import Generated
from llama_api.waiting import Cancelled
from tests.support.fakes import answer, call, until

LONG = 30.0


class FakeFleet:
    """Ollamas that write their pieces, count their calls, and fail or wait on request."""

    def __init__(self):
        self.calls, self.pieces, self.error, self.reason = [], ["The", " sky"], None, "stop"
        self.build, self.since = "build-1", 0.0
        self.proceed = threading.Event()
        self.proceed.set()
        self.outcomes = []

    def stale_since(self, model, digest):
        """When another build than ``digest`` was first seen."""
        return None if digest == self.build else self.since

    def build_unchanged(self, made, model):
        """Whether the build is the one it was."""
        return made.digest == self.build

    def generate(self, asked, run):
        """Write the pieces, then wait for ``proceed``, then fail or end."""
        self.calls.append(asked)
        run.progress.slot_at, run.progress.host, run.progress.state = time.monotonic(), "fake:1", "writing"
        for piece in self.pieces:
            run.publish([piece if isinstance(piece, Piece) else Piece(piece)])
        outcome = "cancelled"
        try:
            with run.cancellation.interrupts(self.proceed.set):
                self.proceed.wait(LONG)
            if run.cancellation.requested:
                raise Cancelled
            outcome = "error"
            if self.error:
                raise self.error
            outcome = self.reason or "error"
        finally:
            self.outcomes.append(outcome)
        return Generated(Completion(self.reason, 17, 2, eval_duration=40_000_000), self.build, "fake:1",
                         time.monotonic())


class Watched(GuardedStore):
    """A store that counts how often its host looked what came of another's claim."""

    looks = 0

    def peek(self, claim, follower):
        self.looks += 1
        return super().peek(claim, follower)


class Bench:
    """A service with its fakes around it."""

    def __init__(self, max_entries=100, max_bytes=1 << 20, store=None, cache_ttl=0.0, cache_stale_if_error=86400.0):
        self.fleet, self.flights = FakeFleet(), Flights()
        self.front = LRUCache(max_entries, max_bytes)
        self.cache = AnswerCache(self.front, store, cache_ttl, cache_stale_if_error)
        self.service = Service(self.fleet, self.cache, self.flights, cache_ttl, cache_stale_if_error)

    def begin(self, asked=None, gone=lambda: False, **directives):
        """A reply that is under way."""
        return self.service.ask(asked or call(), Directives(**directives), gone)

    def ask(self, asked=None, streamed=False, **directives):
        """The text and the finished reply."""
        reply = self.begin(asked, **directives)
        try:
            if not streamed:
                return reply.answer().text, reply
            reply.start()
            return text_of(reply.events()), reply
        finally:
            reply.close()

    def age(self, seconds, asked=None, **changes):
        """Make the stored answer so many seconds old, or put one there that is."""
        born = time.monotonic() - seconds
        self.front.set((asked or call()).key, Entry(answer("Old.", **changes), born, born))

    def idle(self):
        """Wait until nothing is under way."""
        return until(lambda: self.flights.count == 0)


def text_of(events):
    """The text of a reply's events."""
    return "".join(piece.text for pieces in events for piece in pieces)


def label(reply):
    """How a reply is labelled: result, why it was forwarded, stored, cached."""
    return reply.result, reply.forwarded, reply.stored, reply.cached


MISS, HIT = ("miss", "miss", True, False), ("hit", None, False, True)
REFRESH, STALE = ("refresh", "request", True, False), ("refresh", "stale", True, False)
BYPASS, SPARE = ("bypass", "bypass", False, False), ("stale", "stale", False, True)
