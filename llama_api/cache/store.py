"""The interface of shared stores: their methods, their values, their exception and the counted size of an entry.

A store keeps three things for all processes that share it:

Entries are answers, opaque bytes under a digest: the most recently set or touched ones within both of its bounds.

Claims say which process makes the answer to a key, so that others wait for it instead of making it too. A claim that
is not renewed expires, so that waiters do not depend on a killed holder. Waiting processes can read its outcome, which
is deleted once the last of them has read it.

Leases count resources that may be taken a limited number of times, such as the slots of one Ollama; only stores for
many hosts have them. They expire like claims, and a free one goes to the longest waiter.

A purge begins a new *epoch*, a name that is never used again: neither an entry nor a claim of an earlier one is found.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

OVERHEAD = 256  # bytes counted for an entry in addition to its value: the key, its row or hash fields, two indexes
WANTED_FOR = 1.0  # seconds for which a peek at a claim counts as waiting for it; followers peek far more often
QUEUED_FOR = 1.0  # seconds for which a refused request for a lease keeps its place; waiters ask far more often
UNDER_WAY = b""  # result of a peek at a claim without an outcome
OUTDATED = -1  # result of setting an entry whose epoch is over


class StoreError(Exception):
    """An operation of the shared store failed. The text is a sentence for the log, without passwords."""


class Found(NamedTuple):
    """The result of a look-up: the value or None, and the epoch."""

    value: bytes | None
    epoch: str


class Claim(NamedTuple):
    """The right of the process with ``token`` to make the answer to ``key``, taken in ``epoch``."""

    key: str
    epoch: str
    token: str


class Lease(NamedTuple):
    """One of a limited number of leases under ``name``, held by the process with ``token``."""

    name: str
    token: str


class Renewal(NamedTuple):
    """The result of ``keep``: the epoch, and the tokens of our claims that a process waits for."""

    epoch: str
    wanted: frozenset[str]


class Store(Protocol):
    """Answers and claims shared by processes. Every method may raise StoreError, and does so within about 100 ms."""

    name: str  # the URL without user and password
    concurrency: int  # useful number of concurrent operations

    def get(self, key: str) -> Found:
        """Look up the entry of ``key`` without changing its recency, see ``touch``."""

    def get_many(self, keys: Sequence[str]) -> list[Found]:
        """As ``get`` for each of ``keys`` in order, in one round trip."""

    def set(self, key: str, value: bytes, epoch: str) -> int:
        """Store ``value`` as the most recently used. Returns how many other entries were evicted to keep the bounds.

        Returns OUTDATED and changes nothing when ``epoch`` is over. A value that is too large is not stored, but the
        previous one is removed.
        """

    def touch(self, keys: Iterable[str]) -> None:
        """Make ``keys`` the most recently used, the last one most of all. Unknown keys are ignored."""

    def delete(self, key: str) -> None:
        """Remove ``key``."""

    def clear(self) -> str:
        """Remove every entry, and return the name of the new epoch.

        Earlier claims can still be renewed, settled and followed by their processes, but are no longer found.
        """

    def size(self) -> tuple[int, int]:
        """Entries, and bytes: the values' lengths plus OVERHEAD for each. Costs the same however many there are."""

    def claim(self, key: str, token: str, ttl: float) -> Claim:
        """The current claim on ``key``: ours, with ``token``, for ``ttl`` seconds if there is no other.

        Finding another's counts as waiting for it, under ``token``, see ``peek``.
        """

    def peek(self, claim: Claim, follower: str) -> bytes | None:
        """The outcome of ``claim``, or UNDER_WAY, or None when it ended without one.

        ``follower`` counts as waiting from now on, for WANTED_FOR seconds or until it gets the outcome.
        """

    def settle(self, claim: Claim, outcome: bytes, linger: float) -> None:
        """End our claim, and keep ``outcome`` for its followers for at most ``linger`` seconds.

        Nothing happens when the claim is lost: expired, or released.
        """

    def release(self, claim: Claim) -> None:
        """End our claim without an outcome. Nothing happens when it is lost or settled."""

    def renew(self, claims: Sequence[Claim], leases: Sequence[Lease], ttl: float) -> Renewal:
        """Renew our claims and leases for ``ttl`` seconds from now, in one round trip.

        A lost claim stays lost; an expired lease is taken again, as its generation continues.
        """

    def ping(self) -> None:
        """Prove that the store can be reached and written, reconnecting if necessary."""

    def close(self) -> None:
        """Close the connections. The store may be used again afterwards and reconnects by itself."""


@runtime_checkable
class LeasingStore(Store, Protocol):
    """A store for many hosts, which also counts leases."""

    def lease(self, lease: Lease, waited: float, limit: int, ttl: float) -> bool:
        """Take ``lease`` for ``ttl`` seconds if fewer than ``limit`` of its name are taken and no waiter is ahead.

        ``waited`` is the wait so far in seconds: a free lease is reserved for the longest waiter whose own limit allows
        it. A refused caller keeps a place in that order for QUEUED_FOR seconds, and asks again sooner than that. All
        limits of one name are compared with the same count.
        """

    def unlease(self, lease: Lease) -> None:
        """Give ``lease`` back, or the place among its waiters."""
