"""Embeddings: an entry for each text, and one call to Ollama for those texts of a request that are not stored.

A flight of embeddings carries several texts, each under its own key, so that other requests for any of them join it.
"""

import hashlib
import secrets
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from ..answer import Answer, Completion, Piece
from ..cache import AnswerCache, Entry
from ..errors import NotCached, OllamaRefused, PromptTooLong
from ..model_call import ModelCall
from ..trace_context import TraceContext
from ..upstreams import Fleet
from .flights import Joined, Flight, Flights, Landing
from .service import FAILURES, RESULT_OF, Directives, Timings, Reply, Service, timings_of

MOST_TEXTS = 2048  # of one request, OpenAI's limit; each is looked up separately
JoinOrStart = Callable[[Sequence[ModelCall], bool], list[Joined]]
REFUSALS = (OllamaRefused, PromptTooLong)  # errors that another text of the same call may have caused


class Embeddings:
    """Embeds texts, through the same cache, flights and fleet as ``service``."""

    def __init__(self, service: Service, fleet: Fleet, cache: AnswerCache, flights: Flights):
        self._service, self._fleet, self._cache, self._flights = service, fleet, cache, flights

    def ask(self, calls: Sequence[ModelCall], directives: Directives, gone: Callable[[], bool],
            trace: TraceContext | None = None) -> "EmbeddingReply":
        """Begin to embed; ``calls`` has one call for each text, in order, with duplicates. Raises NotCached."""
        asked_at = time.monotonic()
        bypass = directives.no_store or not self._cache.enabled
        wanted = {call.key: call for call in calls}
        known = {} if bypass or directives.no_cache else self._cache.get_many(list(wanted))
        acceptable = {key: entry for key, entry in known.items() if directives.max_age is None
                      or asked_at - entry.born <= directives.max_age}
        found = {key: entry for key, entry in acceptable.items() if self._service.stale_for(entry) is None}
        missing = [call for key, call in wanted.items() if key not in found]
        reply = EmbeddingReply(asked_at, calls, found, {
            key: entry for key, entry in acceptable.items() if self._service.may_serve_stale(entry)})
        if not missing:
            return reply
        if directives.only_if_cached:
            raise NotCached
        renewed = {call.key for call in missing if directives.no_cache or (
            call.key in known and self._service.stale_for(known[call.key]) is None)}
        unknown = not directives.no_cache and any(call.key not in known for call in missing)
        forwarded = "bypass" if bypass else "miss" if unknown else "request" if renewed else "stale"
        reply.join(missing, forwarded, lambda left, join: self._join_or_start(left, join, renewed, bypass, gone, trace))
        return reply

    def _join_or_start(self, calls: Sequence[ModelCall], join: bool, renewed: set[str], bypass: bool,
                       gone: Callable[[], bool], trace: TraceContext | None) -> list[Joined]:
        """Join the flights with any of ``calls`` and start one for the rest."""
        by_key = {call.key: call for call in calls}

        def produce(flight: Flight) -> Landing:
            flight.progress.trace = trace
            return self._produce(flight, [by_key[key] for key in flight.keys or by_key], renewed, bypass)

        if bypass:
            reader, _ = self._flights.join_or_start(None, produce, gone, calls[0].model)
            return [Joined(reader, list(by_key), True)]
        return self._flights.join_or_start_several(list(by_key), produce, gone, calls[0].model, join)

    def _produce(self, flight: Flight, calls: Sequence[ModelCall], renewed: set[str], bypass: bool) -> Landing:
        """Produce the landing of ``flight``; runs in a producer's thread."""
        found: dict[str, Answer] = {}

        def find(anew: bool) -> Landing | None:
            found.update(self._fresh_entries([call.key for call in calls if anew or call.key not in renewed], anew))
            return None if len(found) < len(calls) else Landing(
                Answer(calls[0].model), "found", False, time.monotonic(), answers=found)

        def generate() -> Landing:
            return self._embed(flight, [call for call in calls if call.key not in found], found, bypass)

        if bypass:
            return generate()
        if self._service.claims is None:
            return find(False) or generate()
        key = hashlib.sha256("".join(call.key for call in calls).encode()).hexdigest()
        return self._service.claims.lead_or_follow(flight, key, generate, find)

    def _fresh_entries(self, keys: list[str], anew: bool) -> dict[str, Answer]:
        """The fresh answers that were stored for any of ``keys`` since the first look."""
        if self._service.claims is None:
            keys = [key for key in keys if self._cache.front.has(key)]
        return {key: entry.answer for key, entry in self._cache.get_many(keys, anew).items()
                if self._service.stale_for(entry) is None}

    def _embed(self, flight: Flight, calls: Sequence[ModelCall], found: dict[str, Answer], bypass: bool) -> Landing:
        """Have Ollama embed the texts of ``calls``; the landing includes those ``found`` meanwhile."""
        epoch, run = self._cache.epoch, _Run(flight)
        made = self._fleet.generate(calls[0].with_texts([call.text for call in calls]), run)
        tokens, created = made.completion.input_tokens, time.time()
        batch = (secrets.token_hex(8), len(calls), tokens)
        own = made.completion._replace(input_tokens=tokens if len(calls) == 1 else None)
        embedded = {call.key: Answer(call.model, vector=vector, batch=batch, completion=own, digest=made.digest,
                                     host=made.host, created=created)
                    for call, vector in zip(calls, run.vectors, strict=True)}
        stored = not bypass and self._fleet.build_unchanged(made, calls[0].model) and all([
            self._cache.set(key, answer, epoch) for key, answer in embedded.items()])
        whole = Answer(calls[0].model, completion=made.completion, digest=made.digest, host=made.host, created=created)
        return Landing(whole, "generated", stored, made.ended_at, answers=found | embedded)


class EmbeddingReply(Reply):
    """The reply to one request for embeddings; ``answer`` has the figures for all texts together.

    ``known_tokens`` is the number of known tokens; it is complete if the answer has a count.
    """

    def __init__(self, asked_at: float, calls: Sequence[ModelCall], found: Mapping[str, Entry],
                 spares: Mapping[str, Entry]):
        oldest = min(found.values(), key=lambda entry: entry.born, default=None)
        super().__init__(asked_at, "hit", None, oldest)
        self._asked_at, self._calls, self._spares = asked_at, calls, spares
        self._answers = {key: entry.answer for key, entry in found.items()}
        self._joined: list[Joined] = []
        self.known_tokens = 0

    @property
    def vectors(self) -> list[bytes]:
        """The vectors in the order of the calls, as little-endian float32; available after ``answer``."""
        return [self._answers[call.key].vector or b"" for call in self._calls]

    def join(self, calls: Sequence[ModelCall], forwarded: str, join_or_start: JoinOrStart) -> None:
        """Join the flights of the missing ``calls`` by ``join_or_start``, which may be called again for a retry."""
        self.entry, self.forwarded, self._join_or_start = None, forwarded, join_or_start
        self._joined = join_or_start(calls, True)
        started = any(joined.own for joined in self._joined)
        self.result = RESULT_OF[forwarded] if started else "collapsed"

    def answer(self) -> Answer:
        if not self._joined:
            return self._whole(Completion("stop"))
        try:
            landings = self._land()
        except FAILURES as error:
            return self._fall_back(error)
        finally:
            if self.failure is None:
                self._measure()
        self._label(landings)
        return self._whole(landings[0].answer.completion if len(landings) == 1 else Completion("stop"))

    def close(self) -> None:
        for joined in self._joined:
            joined.reader.close()

    def _land(self) -> list[Landing]:
        """Wait for the flights. Texts that failed in another request's flight are tried again, each alone."""
        by_key, landings, refused = {call.key: call for call in self._calls}, [], []
        for joined in self._joined:
            try:
                landings.append(self._take(joined))
            except REFUSALS:
                if joined.own:
                    raise
                refused += [by_key[key] for key in joined.keys]
        if refused:
            alone, = self._join_or_start(refused, False)
            self._joined.append(alone)
            landings.append(self._take(alone))
        return landings

    def _take(self, joined: Joined) -> Landing:
        landing = joined.reader.outcome()
        self._answers |= {key: landing.answers[key] for key in joined.keys}
        return landing

    def _label(self, landings: list[Landing]) -> None:
        """Set the result of the request from its flights."""
        own = [joined.reader.flight.landing for joined in self._joined if joined.own]
        if all(landing is not None and landing.source == "followed" for landing in own):
            self.result, self.forwarded = "collapsed", "miss"
        else:
            self.result = RESULT_OF[self.forwarded or "miss"]
        self.stored = self.result != "collapsed" and all(landing.stored for landing in landings)

    def _measure(self) -> None:
        """Set the host and the times of the request from its flights, which may have failed."""
        last = self._joined[-1].reader.flight
        self.host = last.landing.answer.host if last.landing is not None else last.progress.host
        times = max((timings_of(joined.reader.flight, joined.reader.joined_at) for joined in self._joined),
                    key=lambda figures: figures.inference)
        self.timings = Timings(times.inference, times.queue)

    def _fall_back(self, error: Exception) -> Answer:
        left = {call.key for call in self._calls} - self._answers.keys()
        if isinstance(error, PromptTooLong) or not left <= self._spares.keys():
            raise error
        self.failure, self.result, self.forwarded = error, "stale", "stale"
        self.entry = min((self._spares[key] for key in left), key=lambda entry: entry.born)
        self._answers |= {key: self._spares[key].answer for key in left}
        self.timings = Timings(time.monotonic() - self._asked_at)
        return self._whole(Completion("stop"))

    def _whole(self, completion: Completion) -> Answer:
        self.known_tokens, exact = tokens_of([(call.key, self._answers[call.key]) for call in self._calls])
        return Answer(self._calls[0].model, completion=completion._replace(
            input_tokens=self.known_tokens if exact else None))


class _Run:
    """The fleet's Run of an embedding."""

    def __init__(self, flight: Flight):
        self.started_at, self.cancellation, self.progress = flight.started_at, flight.cancellation, flight.progress
        self.vectors: tuple[bytes, ...] = ()

    def publish(self, pieces: Sequence[Piece]) -> None:
        """Take the vectors, which arrive all at once."""
        self.vectors = pieces[0].vectors


def tokens_of(embedded: Sequence[tuple[str, Answer]]) -> tuple[int, bool]:
    """The number of known tokens of these texts, pairs of key and answer, and whether it is complete.

    For a call with several texts Ollama reports only the total, which counts once for each complete set of those texts
    in the request.
    """
    calls: dict[tuple[str, int, int | None] | None, Counter[str]] = {}
    for key, answer in embedded:
        calls.setdefault(answer.batch, Counter())[key] += 1
    known, exact = 0, True
    for batch, texts in calls.items():
        _, size, tokens = batch or ("", 0, None)
        times = min(texts.values()) if tokens is not None and len(texts) == size else 0
        known += (tokens or 0) * times
        exact = exact and times == max(texts.values())
    return known, exact
