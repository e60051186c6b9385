"""One generation across processes and hosts: the claim of a key in the shared store, with an expiry.

Who gets the claim generates and publishes the outcome in the store; the others follow it there. A claim that is no
longer renewed, because its holder was killed, expires and a follower takes over.
"""

import logging
import secrets
import threading
import time
from collections.abc import Callable
from typing import Any

import orjson

from ..cache import AnswerCache
from ..waiting import Cancelled
from .flights import Flight, Flights, Landing
from ..errors import OllamaError, QueueFull, QueueTimeout, from_wire, to_wire
from ..answer import Answer

logger = logging.getLogger(__name__)

CLAIM_SECONDS = 3.0  # that a claim outlives its last renewal
KEEP_EVERY = 0.4  # seconds between two rounds of the keeper
LINGER_SECONDS = 10.0  # that an outcome can be read by those who follow it
POLL_SECONDS = 0.05


class Claims:
    """Collapses the flights of all processes that share ``cache.store``."""

    def __init__(self, cache: AnswerCache, flights: Flights):
        self._cache, self._store, self._flights = cache, cache.store, flights
        self._held: dict[Flight, str] = {}  # the flights whose claims are ours, and the claims' tokens
        self._keeper: threading.Thread | None = None

    def fly(self, flight: Flight, generate: Callable[[], Landing], find: Callable[[], Landing | None]) -> Landing:
        """The landing of ``flight``: generated here, or followed where it is generated. Raises what the leader raised.

        ``find`` looks into the cache once more: another process may have answered since the first look.
        """
        self._ensure_keeper()
        token, key = secrets.token_hex(8), str(flight.key)
        while True:
            other = self._store.claim(key, token, CLAIM_SECONDS)
            if other is None:
                return self._lead(flight, key, token, generate, find)
            landing = self._follow(flight, key, other.token)
            if landing is not None:
                return landing

    def _lead(self, flight: Flight, key: str, token: str, generate: Callable[[], Landing],
              find: Callable[[], Landing | None]) -> Landing:
        self._held[flight] = token
        flight.shared = True
        published: bytes | None = None
        try:
            landing = find() or generate()
            published = orjson.dumps({"answer": landing.answer.to_json()})
            return landing
        except (OllamaError, QueueFull, QueueTimeout) as error:
            published = orjson.dumps(to_wire(error))
            raise
        finally:
            del self._held[flight]
            if published is None:
                self._store.release(key, token)
            else:
                self._store.settle(key, token, published, LINGER_SECONDS)

    def _follow(self, flight: Flight, key: str, token: str) -> Landing | None:
        woken = threading.Event()
        with flight.cancellation.interrupts(woken.set):
            while (claim := self._store.peek(key, token)) is not None:
                if claim.outcome is not None:
                    answer = _read_outcome(claim.outcome)
                    if pieces := answer.pieces:
                        flight.publish(pieces)
                    return Landing(answer, "followed", False, time.monotonic())
                if woken.wait(POLL_SECONDS):
                    raise Cancelled
        return None

    def _ensure_keeper(self) -> None:
        if self._keeper is None:
            self._keeper = threading.Thread(target=self._keep, name="keeper", daemon=True)
            self._keeper.start()

    def _keep(self) -> None:
        while True:
            time.sleep(KEEP_EVERY)
            try:
                self._cache.report_use()
                for flight, token in list(self._held.items()):
                    self._store.renew(flight.key, token, CLAIM_SECONDS)
                    if not flight.readers and not self._store.wanted(flight.key, token):
                        self._flights.cancel_if_unread(flight)
            except Exception:
                logger.exception("the keeper of the claims failed")


def _read_outcome(outcome: bytes) -> Answer:
    """The answer in a published outcome. Raises the error in it."""
    fields: dict[str, Any] = orjson.loads(outcome)
    if "answer" in fields:
        return Answer.from_json(fields["answer"])
    raise from_wire(fields) or OllamaError()
