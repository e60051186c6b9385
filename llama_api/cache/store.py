"""What every shared store has in common: its interface, its one exception and how an entry's size is counted."""

from collections.abc import Iterable
from typing import NamedTuple, Protocol

OVERHEAD = 256  # bytes counted for an entry beside its value: the key, its row or hash fields, two indexes
WANTED_FOR = 1.0  # seconds after a peek that a claim counts as wanted; followers peek far more often


class StoreError(Exception):
    """The shared store could not do what it was asked. Its text is a sentence for the log; it holds no password."""


class Claim(NamedTuple):
    """Who makes the answer to a key, and, once it is settled, what came of it (None while it is under way)."""

    token: str
    outcome: bytes | None


class Store(Protocol):
    """Answers and claims shared by processes. Every method may raise StoreError, and does so within about 60 ms."""

    name: str  # the URL without user and password
    concurrency: int  # how many operations may usefully be inside at once

    def get(self, key: str) -> bytes | None:
        """The value of ``key``, or None. Its recency is not changed, see ``touch``."""

    def set(self, key: str, value: bytes) -> int:
        """Store ``value`` as the most recently used. Returns how many other entries were evicted to keep the bounds.

        A value that could not fit alone is not stored; what was there before is gone all the same.
        """

    def touch(self, keys: Iterable[str]) -> None:
        """Make ``keys`` the most recently used, the last one most of all. Unknown keys are ignored."""

    def delete(self, key: str) -> None:
        """Forget ``key``."""

    def clear(self) -> None:
        """Forget every entry. Claims stay, for the generations they stand for go on."""

    def size(self) -> tuple[int, int]:
        """Entries, and bytes: the values' lengths plus OVERHEAD for each. Costs the same however many there are."""

    def claim(self, key: str, token: str, ttl: float) -> Claim | None:
        """Take the claim on ``key`` for ``ttl`` seconds: None when it is now ours, else the living claim of another.

        An expired or a settled claim is taken over. Finding another's counts as waiting for it, see ``wanted``.
        """

    def renew(self, key: str, token: str, ttl: float) -> bool:
        """Let our claim live ``ttl`` seconds from now. False when it is lost: expired, settled or another's."""

    def settle(self, key: str, token: str, outcome: bytes, linger: float) -> None:
        """Publish what came of our claim, to be read for ``linger`` seconds. Nothing happens when it is lost."""

    def release(self, key: str, token: str) -> None:
        """Give our claim up without an outcome. Nothing happens when it is lost or settled."""

    def peek(self, key: str, token: str) -> Claim | None:
        """The claim of ``token`` while it lives or its outcome lingers, and leave a mark that somebody waits."""

    def wanted(self, key: str, token: str) -> bool:
        """Whether anybody peeked at this claim within the last WANTED_FOR seconds."""

    def ping(self) -> None:
        """Prove that the store can be reached and written, connecting anew if need be."""

    def close(self) -> None:
        """Let go of connections. The store may be used again afterwards and connects by itself."""
