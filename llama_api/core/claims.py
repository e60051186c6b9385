"""One generation across processes and hosts: the claim of a key in the shared store, with an expiry.

The process that gets the claim generates and publishes the outcome in the store; the others follow it there. A claim
whose holder was killed is no longer renewed: it expires, and a follower takes over.
"""

import secrets
import threading
import time
from collections.abc import Callable

import orjson

from ..answer import Answer
from ..cache import LEASE_SECONDS, UNDER_WAY, AnswerCache, Claim
from ..errors import LlamaApiError, OllamaError, QueueFull, QueueTimeout, from_wire, to_wire
from ..waiting import Cancelled
from .flights import Flight, Flights, Landing

LINGER_SECONDS = 3.0  # for which followers can read an outcome
POLL_SECONDS = 0.05
LARGEST = 1 << 20  # approximate bytes of the largest answer published in an outcome if the cache has it too
_STORED = orjson.dumps({"stored": True})  # the outcome for a larger one
Find = Callable[[bool], Landing | None]


class Claims:
    """Collapses the flights of all processes that share the store of ``cache``."""

    def __init__(self, cache: AnswerCache, flights: Flights):
        assert cache.store is not None and cache.renewer is not None
        self._cache, self._store, self._renewer, self._flights = cache, cache.store, cache.renewer, flights

    def lead_or_follow(self, flight: Flight, key: str, generate: Callable[[], Landing], find: Find) -> Landing:
        """The landing of ``flight``: generated here, or followed where it is generated. Raises what the leader raised.

        ``find`` looks into the cache again, as another process may have answered since. Called with True, it returns
        the leader's answer even if the caller refused stored ones.
        """
        self._renewer.start()
        token = secrets.token_hex(8)
        while (claim := self._claim(key, token)) is not None:
            if claim.token == token:
                return self._lead(flight, claim, generate, find)
            outcome = self._follow(flight, claim, token)
            if outcome == _STORED:
                if (found := find(True)) is not None:
                    return found._replace(source="followed", born=None)
                flight.followed = False  # it was evicted already
            elif outcome is not None:
                came = _read_outcome(outcome)
                if came is None:
                    flight.followed = False
                    break  # leave the claim to processes of the newer version that wrote it
                if isinstance(came, Exception):
                    raise came
                return came
        return find(False) or generate()

    def _claim(self, key: str, token: str) -> Claim | None:
        """The current claim on ``key``, ours or another's; None when the store is unavailable."""
        since = self._cache.epoch
        claim = self._store.claim(key, token, LEASE_SECONDS)
        if claim is not None:
            self._cache.epochs.saw(claim.epoch, since)
        return claim

    def _lead(self, flight: Flight, claim: Claim, generate: Callable[[], Landing], find: Find) -> Landing:
        flight.shared = True
        self._renewer.hold(claim, lambda wanted: wanted or self._flights.cancel_if_unread(flight))
        published: bytes | None = None
        try:
            landing = find(False) or generate()
            published = _outcome_of(landing)
            return landing
        except (OllamaError, QueueFull, QueueTimeout) as error:
            published = orjson.dumps(to_wire(error))
            raise
        except Cancelled:
            reason = flight.cancellation.reason  # an operator's is published for other readers too
            published = orjson.dumps(to_wire(reason)) if isinstance(reason, LlamaApiError) else None
            raise
        finally:
            self._renewer.drop(claim)
            if published is None:
                self._store.release(claim)
            else:
                self._store.settle(claim, published, LINGER_SECONDS)

    def _follow(self, flight: Flight, claim: Claim, token: str) -> bytes | None:
        """The outcome of ``claim``, None when it ended without one."""
        woken, flight.followed = threading.Event(), True
        with flight.cancellation.interrupts(woken.set):
            while (outcome := self._store.peek(claim, token)) == UNDER_WAY:
                if woken.wait(POLL_SECONDS):
                    raise Cancelled
        flight.followed = outcome is not None
        return outcome


def _outcome_of(landing: Landing) -> bytes:
    """The outcome to publish for ``landing``: not the answer itself if it is large and the store has it already."""
    size = landing.answer.weight + sum(answer.weight for answer in landing.answers.values())
    if size > LARGEST and (landing.stored or landing.source == "found"):
        return _STORED
    return orjson.dumps({"answer": landing.answer.to_json(), "answers": {
        key: answer.to_json() for key, answer in landing.answers.items()}})


def _read_outcome(outcome: bytes) -> Landing | Exception | None:
    """The landing or error for followers of a published outcome, None when this version cannot read it."""
    try:
        fields = orjson.loads(outcome)
        if not isinstance(fields, dict) or not isinstance(fields.get("answers", {}), dict):
            return None
        if "answer" not in fields:
            return from_wire(fields)
        answers = {key: Answer.from_json(values) for key, values in fields.get("answers", {}).items()}
        return Landing(Answer.from_json(fields["answer"]), "followed", False, time.monotonic(), answers=answers)
    except ValueError:
        return None
