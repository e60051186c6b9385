"""The path of a question to its answer: key, cache, flight, slot, Ollama, cache. Knows nothing of HTTP."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from ..cache.lru import AnswerCache, Entry, key_for
from ..waiting import Cancelled
from .flights import Flight, Flights, Reader
from ..upstreams.queue import Gate, GateClosed
from ..answer import Answer, Question
from ..upstreams.monitor import Breaker, Monitor
from ..ollama.client import OllamaClient
from ..ollama.protocol import Completion, OllamaError, PromptTooLong
from ..settings import Settings
from .claims import Claims

RESULT_OF = {"bypass": "bypass", "request": "refresh", "miss": "miss", "stale": "refresh"}  # by why it is forwarded


class NotCached(Exception):
    """The caller wanted a stored answer only, and there is none."""


@dataclass(frozen=True, slots=True)
class Directives:
    """What a request's Cache-Control asks for; ``max_age`` is in seconds."""

    no_cache: bool = False
    no_store: bool = False
    only_if_cached: bool = False
    max_age: float | None = None


class Observer(Protocol):
    """Who is told the facts of each generation."""

    def waiting(self, change: int) -> None:
        """One more (1) or less (-1) waits for a slot."""

    def running(self, change: int) -> None:
        """One more (1) or less (-1) holds a slot."""

    def generation_ended(self, flight: Flight, outcome: str, completion: Completion | None) -> None:
        """A generation that held a slot has ended; ``outcome`` is stop, length, error or cancelled."""


@dataclass(frozen=True, slots=True)
class Figures:
    """The times of one request, in seconds; None where there is nothing to tell."""

    inference: float
    queue: float = 0.0
    first_token: float | None = None


class Reply:
    """An answer on its way to one client: call ``answer``, or ``start`` and then ``pieces``; ``close`` when done.

    ``result`` is hit, stale, miss, collapsed, refresh or bypass. ``forwarded`` is why the cache did not answer (``fwd``
    of RFC 9211: miss, stale, request or bypass), None on a hit. Both are final once ``answer`` or ``start`` returned.
    """

    def __init__(self, asked_at: float, result: str, forwarded: str | None, entry: Entry | None):
        self.result, self.forwarded, self.entry = result, forwarded, entry
        self.failure: Exception | None = None  # why a stale answer is served
        self.stored = False
        self.figures = Figures(time.monotonic() - asked_at)

    @property
    def cached(self) -> bool:
        """Whether the answer comes from the cache, fresh or stale."""
        return self.entry is not None

    def start(self) -> None:
        """Wait until there is something to send. Raises what kept the answer from coming."""

    def answer(self) -> Answer:
        """The whole answer. Raises what kept it from coming."""
        assert self.entry is not None
        return self.entry.answer

    def pieces(self) -> Iterator[str]:
        """The text, piece by piece; joined it is the answer's. Raises what broke it off."""
        if text := self.answer().text:
            yield text

    def close(self) -> None:
        """The client has its answer, or has gone."""


class FlightReply(Reply):
    """A reply that reads a flight; with a ``spare`` entry, which is served should the generation fail."""

    def __init__(self, asked_at: float, result: str, forwarded: str, reader: Reader, spare: Entry | None):
        super().__init__(asked_at, result, forwarded, None)
        self._asked_at, self._reader, self._spare = asked_at, reader, spare

    def start(self) -> None:
        try:
            self._reader.start()
        except (OllamaError, GateClosed) as error:
            self._fall_back(error)
        self._label()

    def answer(self) -> Answer:
        if self.failure is None:
            try:
                answer: Answer = self._reader.outcome()
                self._label()
                return answer
            except (OllamaError, GateClosed) as error:
                self._fall_back(error)
        return super().answer()

    def pieces(self) -> Iterator[str]:
        if self.failure is not None:
            yield from super().pieces()
        else:
            yield from self._reader.pieces()
            self._label()

    def close(self) -> None:
        self._reader.close()

    def _label(self) -> None:
        """Tell what became of the request, by what became of its flight."""
        flight, reader = self._reader.flight, self._reader
        if self.failure is not None:
            return
        if self.result == "collapsed" or flight.followed:
            self.result, self.forwarded = "collapsed", "miss"
        elif flight.found is not None:
            self.result, self.forwarded, self.entry = "hit", None, flight.found
        self.stored = flight.stored and self.result != "collapsed"
        self.figures = _figures(flight, reader)

    def _fall_back(self, error: OllamaError | GateClosed) -> None:
        if self._spare is None or isinstance(error, PromptTooLong):
            raise error
        self.failure, self.entry = error, self._spare
        self.result, self.forwarded = "stale", "stale"
        self.figures = Figures(time.monotonic() - self._asked_at)


class Service:
    """Answers questions. Its collaborators come by the constructor."""

    def __init__(self, settings: Settings, client: OllamaClient, monitor: Monitor, breaker: Breaker,
                 cache: AnswerCache, gate: Gate, flights: Flights, observer: Observer):
        self._settings, self._client, self._monitor, self._breaker = settings, client, monitor, breaker
        self._cache, self._gate, self._flights, self._observer = cache, gate, flights, observer
        self._claims = Claims(cache, flights) if cache.store is not None and cache.enabled else None

    def generate(self, question: Question, directives: Directives, gone: Callable[[], bool]) -> Reply:
        """Begin to answer ``question``; ``gone`` tells whether its client has left. Raises NotCached."""
        asked_at = time.monotonic()
        bypass = directives.no_store or not self._cache.enabled
        key = None if bypass else key_for(question, self._settings.model, self._settings.num_ctx)
        entry = self._cache.get(key) if key is not None and not directives.no_cache else None
        acceptable = entry is not None and (
            directives.max_age is None or asked_at - entry.born <= directives.max_age)
        fresh = entry is not None and self._stale_for(entry) is None
        if acceptable and fresh:
            return Reply(asked_at, "hit", None, entry)
        if directives.only_if_cached:
            raise NotCached
        spare = entry if acceptable and entry is not None and self._serves_in_need(entry) else None
        renew = directives.no_cache or fresh  # then what the cache holds is not wanted
        forwarded = "bypass" if bypass else "request" if renew else "miss" if entry is None else "stale"
        reader, started = self._flights.board(key, lambda flight: self._fly(flight, question, renew), gone)
        result = RESULT_OF[forwarded] if started else "collapsed"
        return FlightReply(asked_at, result, forwarded, reader, spare)

    def ttl(self, entry: Entry) -> int | None:
        """Whole seconds that ``entry`` stays fresh; with its age they are the TTL. None for as long as it is kept."""
        ttl = self._settings.cache_ttl
        return max(0, int(ttl - int(self.age(entry)))) if ttl else None

    @staticmethod
    def age(entry: Entry) -> float:
        """Seconds since the answer in ``entry`` was generated."""
        return time.monotonic() - entry.born

    def _stale_for(self, entry: Entry) -> float | None:
        """Seconds since ``entry`` was last fresh, None when it is fresh."""
        ttl, age = self._settings.cache_ttl, self.age(entry)
        since = self._monitor.stale_since(entry.answer.digest)
        outdated = None if since is None else time.monotonic() - since
        expired = age - ttl if ttl and age >= ttl else None
        return max((seconds for seconds in (outdated, expired) if seconds is not None), default=None)

    def _serves_in_need(self, entry: Entry) -> bool:
        stale_for = self._stale_for(entry)
        return stale_for is None or stale_for <= self._settings.cache_stale_if_error

    def _fly(self, flight: Flight, question: Question, renew: bool) -> Answer:
        """Produce the answer of ``flight``: what a producer's thread runs."""
        def find() -> Answer | None:
            entry = self._cache.get(flight.key) if flight.key is not None and not renew else None
            if entry is None or self._stale_for(entry) is not None:
                return None
            flight.found = entry
            if entry.answer.text:
                flight.publish(entry.answer.text)
            return entry.answer

        def generate() -> Answer:
            return self._generate(flight, question)

        if self._claims is not None and flight.key is not None:
            return self._claims.fly(flight, generate, find)
        return find() or generate()

    def _generate(self, flight: Flight, question: Question) -> Answer:
        digest = self._monitor.digest()
        outcome, completion = "error", None
        with self._breaker.admission() as admit, self._slot(flight):
            admit()
            try:
                completion = self._client.generate(question, digest, flight.cancellation, flight.publish)
                outcome = completion.finish_reason or "error"
            except Cancelled:
                outcome = "cancelled"
                raise
            finally:
                flight.landed_at = time.monotonic()
                self._observer.generation_ended(flight, outcome, completion)
        answer = Answer("".join(flight.pieces), self._settings.model, completion.finish_reason, completion.input_tokens,
                        completion.output_tokens, completion.tokens_per_second, digest, time.time())
        if flight.key is not None and answer.finish_reason is not None:
            flight.stored = self._cache.set(flight.key, answer)
        return answer

    @contextmanager
    def _slot(self, flight: Flight) -> Iterator[None]:
        """Hold a slot for ``flight``, and tell the observer who waits and who runs."""
        self._observer.waiting(1)
        waits = True
        try:
            with self._gate.slot(flight.cancellation):
                flight.slot_at = time.monotonic()
                self._observer.waiting(-1)
                waits = False
                self._observer.running(1)
                try:
                    yield
                finally:
                    self._observer.running(-1)
        finally:
            if waits:
                self._observer.waiting(-1)


def _figures(flight: Flight, reader: Reader) -> Figures:
    """The times of a request, from those of its flight: what came before it joined does not count."""
    slot_at = reader.joined_at if flight.slot_at is None else max(reader.joined_at, flight.slot_at)
    if flight.found is not None:
        return Figures(time.monotonic() - reader.joined_at)
    ended = flight.landed_at or time.monotonic()
    first = None if flight.first_piece_at is None else max(0.0, flight.first_piece_at - slot_at)
    return Figures(max(0.0, ended - slot_at), slot_at - reader.joined_at, first)
