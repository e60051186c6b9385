"""Renews this process's claims and leases in the shared store several times a second."""

import logging
import threading
from collections.abc import Callable

from ..background import BackgroundThread
from .epochs import Epochs
from .guarded import GuardedStore
from .store import Claim, Lease, Renewal

logger = logging.getLogger(__name__)

RENEW_EVERY = 0.4  # seconds between two rounds
LEASE_SECONDS = 3.0  # seconds that a claim or lease outlives its last renewal, and so its process


class Renewer:
    """Renews this process's claims and leases in one round trip, reports what it served, and sees purges.

    Its thread starts with the first use and ends with ``stop``.
    """

    def __init__(self, store: GuardedStore, epochs: Epochs):
        self._store, self._epochs = store, epochs
        self._claims: dict[Claim, Callable[[bool], object]] = {}
        self._leases: dict[Lease, None] = {}
        self._used: dict[str, None] = {}  # keys served since the last report, in order
        self._thread, self._stopped = BackgroundThread("renewer", self._run), threading.Event()

    def __repr__(self) -> str:
        return f"<Renewer of {len(self._claims)} claims, {len(self._leases)} leases, {len(self._used)} uses to report>"

    def start(self) -> None:
        """Start the rounds, unless already started."""
        self._thread.start()

    def hold(self, claim: Claim, told: Callable[[bool], object]) -> None:
        """Renew ``claim`` until ``drop``; each round calls ``told`` with whether another process waits for it."""
        self._claims[claim] = told
        self.start()

    def drop(self, claim: Claim) -> None:
        """Stop renewing ``claim``; ``settle`` or ``release`` ends it in the store."""
        del self._claims[claim]

    def lease(self, lease: Lease, waited: float, limit: int) -> bool | None:
        """Take ``lease`` and renew it until ``unlease``, see LeasingStore; None when the store is unavailable."""
        taken = self._store.lease(lease, waited, limit, LEASE_SECONDS)
        if taken:
            self._leases[lease] = None
            self.start()
        return taken

    def unlease(self, lease: Lease) -> None:
        """Give ``lease`` back, or its place among the waiters."""
        self._leases.pop(lease, None)
        self._store.unlease(lease)

    def served(self, key: str) -> None:
        """Note that the entry of ``key`` was just served, from this process's copy or from the store."""
        self._used.pop(key, None)
        self._used[key] = None

    def report_use(self) -> None:
        """Report the entries served since the last report, in order, so that the store evicts by the same use."""
        if keys := list(self._used):
            for key in keys:
                self._used.pop(key, None)
            if not self._store.touch(keys) and self._store.available:
                self._used = {**dict.fromkeys(keys), **self._used}  # the store was busy: report them later

    def stop(self) -> None:
        """End the rounds for good."""
        self._stopped.set()

    def _run(self) -> None:
        while not self._stopped.wait(RENEW_EVERY):
            try:
                self._round()
            except Exception:
                logger.exception("the renewer of what is shared failed")

    def _round(self) -> None:
        claims, leases, since = list(self._claims), list(self._leases), self._epochs.number
        kept = self._store.renew(claims, leases, LEASE_SECONDS)
        for lease in leases:
            if lease not in self._leases:  # given back meanwhile, perhaps before it was renewed
                self._store.unlease(lease)
        if kept is not None:
            self._epochs.saw(kept.epoch, since)
        elif not self._store.available:
            kept = Renewal("", frozenset())  # no process can wait for us there
        if kept is not None:
            for claim in claims:
                if told := self._claims.get(claim):
                    told(claim.token in kept.wanted)
        self.report_use()
