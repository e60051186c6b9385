"""The path of a call to its answer: cache, flight, claim, fleet, cache. Knows nothing of HTTP."""

import time
from collections.abc import Callable, Generator
from dataclasses import dataclass

from ..answer import Answer, Piece
from ..cache import AnswerCache, Entry
from ..errors import NotCached, OllamaError, PromptTooLong, QueueFull, QueueTimeout
from ..model_call import ModelCall
from ..trace_context import TraceContext
from ..upstreams import Fleet
from ..waiting import Wait
from .claims import Claims
from .flights import Flight, Flights, Landing, Reader

RESULT_OF = {"bypass": "bypass", "request": "refresh", "miss": "miss", "stale": "refresh"}  # by why it is forwarded
Events = Generator[list[Piece] | Wait, None, None]
FAILURES = (OllamaError, QueueFull, QueueTimeout)  # errors for which a stale answer may be served instead


@dataclass(frozen=True, slots=True)
class Directives:
    """The directives of a request's Cache-Control; ``max_age`` is in seconds."""

    no_cache: bool = False
    no_store: bool = False
    only_if_cached: bool = False
    max_age: float | None = None


@dataclass(frozen=True, slots=True)
class Timings:
    """The times of one request in seconds, None where they do not apply."""

    inference: float
    queue: float = 0.0
    first_token: float | None = None


class Reply:
    """The reply to one client: call ``answer``, or ``start`` and then ``events``; ``close`` when done.

    ``result`` is hit, stale, miss, collapsed, refresh or bypass. ``forwarded`` says why the cache did
    not answer (``fwd`` of RFC 9211: miss, stale, request or bypass), None on a hit. Both are final once ``answer`` has
    returned, or ``start`` with a piece. ``host`` is the Ollama that generated, None for a stored answer.
    """

    def __init__(self, asked_at: float, result: str, forwarded: str | None, entry: Entry | None):
        self.result, self.forwarded, self.entry = result, forwarded, entry
        self.failure: Exception | None = None  # why a stale answer is served
        self.stored = False
        self.host: str | None = None
        self.timings = Timings(time.monotonic() - asked_at)

    @property
    def cached(self) -> bool:
        """Whether the answer comes from the cache, fresh or stale."""
        return self.entry is not None

    def start(self, silence: float | None = None) -> None:
        """Wait until there is something to send, at most ``silence`` seconds. Raises the error of the request."""

    def answer(self) -> Answer:
        """The whole answer. Raises the error of the request."""
        assert self.entry is not None
        return self.entry.answer

    def events(self, silence: float | None = None) -> Events:
        """Yield the pieces of the answer, and a Wait after each ``silence`` seconds without any.

        Raises the error of the request.
        """
        if pieces := self.answer().pieces:
            yield pieces

    def close(self) -> None:
        """End the reply: the client has its answer or has left."""


class FlightReply(Reply):
    """A reply that reads a flight, with a ``spare`` entry to serve if the generation fails."""

    def __init__(self, asked_at: float, result: str, forwarded: str, reader: Reader, stale_entry: Entry | None):
        super().__init__(asked_at, result, forwarded, None)
        self._asked_at, self._reader, self._stale_entry = asked_at, reader, stale_entry
        self._asked_as = result, forwarded

    def start(self, silence: float | None = None) -> None:
        try:
            self._reader.start(silence)
        except FAILURES as error:
            self._fall_back(error)
        finally:
            self._label()

    def answer(self) -> Answer:
        if self.failure is None:
            try:
                return self._reader.outcome().answer
            except FAILURES as error:
                self._fall_back(error)
            finally:
                self._label()
        return super().answer()

    def events(self, silence: float | None = None) -> Events:
        sent = False
        try:
            for event in self._reader.events(silence) if self.failure is None else ():
                sent = sent or not isinstance(event, Wait)
                yield event
        except FAILURES as error:
            if sent:
                raise
            self._fall_back(error)
        finally:
            self._label()
        if self.failure is not None:
            yield from super().events(silence)

    def close(self) -> None:
        self._reader.close()

    def _label(self) -> None:
        """Set the result and the figures of the request from its flight, which may have failed."""
        if self.failure is not None:
            return
        flight, landing = self._reader.flight, self._reader.flight.landing
        self.result, self.forwarded = self._asked_as
        if landing is not None and landing.source == "found" and self.result != "collapsed":
            assert landing.born is not None
            self.result, self.forwarded, self.entry = "hit", None, Entry(landing.answer, landing.born, landing.ended_at)
        elif flight.followed or self.result == "collapsed":
            self.result, self.forwarded = "collapsed", "miss"
        self.stored = landing is not None and landing.stored and self.result != "collapsed"
        self.host = None if self.cached else landing.answer.host if landing is not None else flight.progress.host
        self.timings = timings_of(flight, self._reader.joined_at)

    def _fall_back(self, error: Exception) -> None:
        if self._stale_entry is None or isinstance(error, PromptTooLong):
            raise error
        self.failure, self.entry = error, self._stale_entry
        self.result, self.forwarded = "stale", "stale"
        self.timings = Timings(time.monotonic() - self._asked_at)


class Service:
    """Answers calls; ``ttl`` and ``stale_if_error`` are in seconds."""

    def __init__(self, fleet: Fleet, cache: AnswerCache, flights: Flights, ttl: float = 0.0,
                 stale_if_error: float = 0.0):
        self._fleet, self._cache, self._flights = fleet, cache, flights
        cache.when_purged(flights.close_to_joiners)
        self._ttl, self._stale_if_error = ttl, stale_if_error
        self.claims = Claims(cache, flights) if cache.store is not None and cache.enabled else None

    def ask(self, call: ModelCall, directives: Directives, gone: Callable[[], bool],
            trace: TraceContext | None = None) -> Reply:
        """Begin to answer ``call``; ``gone`` says whether its client has left. Raises NotCached.

        ``trace`` is the span of the request; a generation belongs to the span of the request that began it.
        """
        asked_at = time.monotonic()
        bypass = directives.no_store or not self._cache.enabled
        key = None if bypass else call.key
        if bypass:
            self._cache.watch()
        entry = self._cache.get(key) if key is not None and not directives.no_cache else None
        acceptable = entry is not None and (
            directives.max_age is None or asked_at - entry.born <= directives.max_age)
        fresh = entry is not None and self.stale_for(entry) is None
        if acceptable and fresh:
            return Reply(asked_at, "hit", None, entry)
        if directives.only_if_cached:
            raise NotCached
        stale_entry = entry if acceptable and entry is not None and self.may_serve_stale(entry) else None
        renew = directives.no_cache or fresh  # the caller refused the cached entry, so do not look it up again
        forwarded = "bypass" if bypass else "request" if renew else "miss" if entry is None else "stale"
        reader, started = self._flights.join_or_start(
            key, lambda flight: self._produce(flight, call, renew, trace), gone, call.model)
        result = RESULT_OF[forwarded] if started else "collapsed"
        return FlightReply(asked_at, result, forwarded, reader, stale_entry)

    def load(self, model: str, gone: Callable[[], bool]) -> None:
        """Have ``model`` loaded, and wait until it is. Raises OllamaError, or ClientGone."""
        def produce(flight: Flight) -> Landing:
            self._fleet.load(model, flight.cancellation, flight.progress)
            return Landing(Answer(model), "generated", False, time.monotonic())

        reader, _ = self._flights.join_or_start(None, produce, gone, model)
        try:
            reader.outcome()
        finally:
            reader.close()

    def purge(self) -> None:
        """Remove every answer; later requests join no earlier generation."""
        self._cache.clear()

    def ttl(self, entry: Entry) -> int | None:
        """Whole seconds for which ``entry`` stays fresh; their sum with its age is the TTL. None without a TTL."""
        return max(0, int(self._ttl - int(self.age(entry)))) if self._ttl else None

    @staticmethod
    def age(entry: Entry) -> float:
        """Seconds since the answer in ``entry`` was generated."""
        return time.monotonic() - entry.born

    def stale_for(self, entry: Entry) -> float | None:
        """Seconds since ``entry`` was last fresh, None when it is fresh."""
        ttl, age = self._ttl, self.age(entry)
        since = self._fleet.stale_since(entry.answer.model, entry.answer.digest)
        outdated = None if since is None else time.monotonic() - since
        expired = age - ttl if ttl and age >= ttl else None
        return max((seconds for seconds in (outdated, expired) if seconds is not None), default=None)

    def may_serve_stale(self, entry: Entry) -> bool:
        """Whether ``entry`` may be served while Ollama fails."""
        stale_for = self.stale_for(entry)
        return stale_for is None or stale_for <= self._stale_if_error

    def _produce(self, flight: Flight, call: ModelCall, renew: bool, trace: TraceContext | None) -> Landing:
        """Produce the landing of ``flight``; runs in a producer's thread."""
        flight.progress.trace = trace

        def find(anew: bool) -> Landing | None:
            if flight.key is None or renew and not anew:
                return None
            entry = self._cache.get_many([flight.key], anew).get(flight.key)
            if entry is None or self.stale_for(entry) is not None:
                return None
            return Landing(entry.answer, "found", False, time.monotonic(), entry.born)

        def generate() -> Landing:
            return self._generate(flight, call)

        if self.claims is not None and flight.key is not None:
            return self.claims.lead_or_follow(flight, flight.key, generate, find)
        return find(False) or generate()

    def _generate(self, flight: Flight, call: ModelCall) -> Landing:
        epoch = self._cache.epoch  # of the claim, if there is one
        made = self._fleet.generate(call, flight)
        answer = Answer.of(flight.pieces, made.completion, model=call.model, digest=made.digest, host=made.host,
                           created=time.time())
        stored = (flight.key is not None and made.completion.finish_reason is not None
                  and self._fleet.build_unchanged(made, call.model) and self._cache.set(flight.key, answer, epoch))
        return Landing(answer, "generated", stored, made.ended_at)


def timings_of(flight: Flight, joined_at: float) -> Timings:
    """The times of a request from those of its flight, without the time before it joined."""
    progress, landing = flight.progress, flight.landing
    if landing is not None and landing.source == "found":
        return Timings(time.monotonic() - joined_at)
    ended = time.monotonic() if landing is None else landing.ended_at
    waited = landing is None and not flight.followed and progress.slot_at is None  # it never got a slot
    slot_at = max(joined_at, ended if waited else progress.slot_at or joined_at)
    first = None if progress.first_piece_at is None else max(0.0, progress.first_piece_at - slot_at)
    return Timings(max(0.0, ended - slot_at), slot_at - joined_at, first)
