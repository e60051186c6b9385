"""Slots counted over all machines, if a shared store can count them."""

import secrets
import time

from ..cache import GuardedStore, Renewer, Lease
from .slot_files import identity
from .upstream import Upstream
from .waiter import Waiter

AWAY_SECONDS = 0.5  # to wait for a store that is away, so that a short delay does not exceed the slots


class Leases:
    """A lease for each slot taken, renewed by ``renewer`` and granted to the longest waiter on any machine.

    While ``store`` cannot be reached, each machine counts for itself.
    """

    def __init__(self, renewer: Renewer, store: GuardedStore):
        self._renewer, self._store = renewer, store
        self._taken: dict[str, Lease] = {}  # by the token of the waiter
        self._asked: dict[str, set[Lease]] = {}  # leases refused, by the same token

    def __repr__(self) -> str:
        return f"<Leases: {len(self._taken)} taken, asked for by {len(self._asked)}>"

    def take(self, waiter: Waiter, upstream: Upstream) -> bool:
        """Take a lease of a slot of ``upstream`` from the store; False when there is none for ``waiter``."""
        waiter.token = waiter.token or secrets.token_hex(8)
        lease = Lease(identity(upstream.slots.url), waiter.token)
        taken = self._renewer.lease(lease, time.monotonic() - waiter.since, upstream.slots.number)
        if taken is None and self._store.away_for <= AWAY_SECONDS:
            return False
        if taken is False:
            self._asked.setdefault(waiter.token, set()).add(lease)
            return False
        self._asked.get(waiter.token, set()).discard(lease)
        if taken:
            self._taken[waiter.token] = lease
        return True

    def served(self, waiter: Waiter) -> None:
        """Give up the places of ``waiter`` at the other Ollamas: it has a slot or has left."""
        for lease in self._asked.pop(waiter.token, ()):
            self._renewer.unlease(lease)

    def give_back(self, waiter: Waiter) -> None:
        """Give the lease of ``waiter`` back, if it has one."""
        if (lease := self._taken.pop(waiter.token, None)) is not None:
            self._renewer.unlease(lease)
