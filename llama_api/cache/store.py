"""What every shared store has in common: its interface, its values, its one exception and how it counts an entry.

A store keeps three things for all processes that share it:

Entries are answers, opaque bytes under a digest: the most recently set or touched ones within both of its bounds.

Claims say who makes the answer to a key, so that others wait for it instead of making it too. A claim that is not
kept up expires, so that a killed holder frees those who wait. What came of it can be read by those who wait, and goes
with the last of them.

Leases count what may be taken a limited number of times, such as the slots of one Ollama; only a store of many hosts
has them. They expire like claims, and a free one goes to whoever has waited longest.

A purge begins a new *epoch*, a name that is never used again: neither an entry nor a claim of an earlier one is found.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

OVERHEAD = 256  # bytes counted for an entry beside its value: the key, its row or hash fields, two indexes
WANTED_FOR = 1.0  # seconds that a follower's look at a claim counts as waiting for it; followers look far more often
QUEUED_FOR = 1.0  # seconds that asking for a lease in vain keeps one's place; those who wait ask far more often
UNDER_WAY = b""  # what a look at a claim finds while there is no outcome
OUTDATED = -1  # what comes of setting an entry whose epoch is over


class StoreError(Exception):
    """The shared store could not do what it was asked. Its text is a sentence for the log; it holds no password."""


class Found(NamedTuple):
    """What a look for an entry found: its value, None where there is none, and the epoch it looked in."""

    value: bytes | None
    epoch: str


class Claim(NamedTuple):
    """The right to make the answer to ``key``, of the process that drew ``token``, taken in ``epoch``."""

    key: str
    epoch: str
    token: str


class Lease(NamedTuple):
    """One of the limited number that may be held under ``name``; the holder is whoever drew ``token``."""

    name: str
    token: str


class Kept(NamedTuple):
    """What a round of ``keep`` found: the epoch, and the tokens of our claims that somebody waits for."""

    epoch: str
    wanted: frozenset[str]


class Store(Protocol):
    """Answers and claims shared by processes. Every method may raise StoreError, and does so within about 100 ms."""

    name: str  # the URL without user and password
    concurrency: int  # how many operations may usefully be inside at once

    def get(self, key: str) -> Found:
        """Look for the entry of ``key``. Its recency is not changed, see ``touch``."""

    def get_many(self, keys: Sequence[str]) -> list[Found]:
        """As ``get``, for each of ``keys`` and in their order, all in one round trip."""

    def set(self, key: str, value: bytes, epoch: str) -> int:
        """Store ``value`` as the most recently used. Returns how many other entries were evicted to keep the bounds.

        OUTDATED, and nothing has changed, when ``epoch`` is over. A value that could not fit alone is not stored; what
        was there before is gone all the same.
        """

    def touch(self, keys: Iterable[str]) -> None:
        """Make ``keys`` the most recently used, the last one most of all. Unknown keys are ignored."""

    def delete(self, key: str) -> None:
        """Forget ``key``."""

    def clear(self) -> str:
        """Forget every entry, and begin a new epoch, which is returned.

        Claims of before can be kept up, settled and followed by those who have them, but are not found any more.
        """

    def size(self) -> tuple[int, int]:
        """Entries, and bytes: the values' lengths plus OVERHEAD for each. Costs the same however many there are."""

    def claim(self, key: str, token: str, ttl: float) -> Claim:
        """The living claim on ``key``: ours, with ``token``, for ``ttl`` seconds when no other one is under way.

        Finding another's counts as waiting for it, under ``token``, see ``peek``.
        """

    def peek(self, claim: Claim, follower: str) -> bytes | None:
        """What came of ``claim``: the outcome, UNDER_WAY, or None when it is over without one.

        ``follower`` counts as waiting from this look on, for WANTED_FOR seconds or until it gets the outcome.
        """

    def settle(self, claim: Claim, outcome: bytes, linger: float) -> None:
        """End our claim, and leave ``outcome`` to those who wait, for ``linger`` seconds at most.

        Nothing happens when the claim is lost: expired, or released.
        """

    def release(self, claim: Claim) -> None:
        """End our claim without an outcome. Nothing happens when it is lost or settled."""

    def keep(self, claims: Sequence[Claim], leases: Sequence[Lease], ttl: float) -> Kept:
        """Let our claims and leases live ``ttl`` seconds from now, all in one round trip.

        A claim that is lost stays lost; a lease that had lapsed is taken again, for its generation goes on.
        """

    def ping(self) -> None:
        """Prove that the store can be reached and written, connecting anew if need be."""

    def close(self) -> None:
        """Let go of connections. The store may be used again afterwards and connects by itself."""


@runtime_checkable
class LeasingStore(Store, Protocol):
    """A store of many hosts, which counts what they share."""

    def lease(self, lease: Lease, waited: float, limit: int, ttl: float) -> bool:
        """Take ``lease`` for ``ttl`` seconds if fewer than ``limit`` of its name are taken and nobody is before us.

        ``waited`` is how many seconds we have wanted it: each free one is kept for whoever has waited longest, as far
        as they may take it by their own limit. Whoever gets False has a place in that order for QUEUED_FOR seconds,
        and asks again sooner than that. All limits of one name are compared with the same count.
        """

    def unlease(self, lease: Lease) -> None:
        """Give ``lease`` back, or the place in the order of those who wait for it."""
