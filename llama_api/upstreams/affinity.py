"""Where the beginning of a prompt was last seen: there Ollama need not read it again."""

import time
from collections import OrderedDict
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

from ..model_call import ModelCall

BLOCK = 256  # characters
LEAST_BLOCKS = 4  # what is shorter is read again as fast as it is looked for
MOST_BLOCKS = 4096  # of one prompt
MOST_KNOWN = 32768  # blocks that are remembered
BELIEVED = 0.5  # of what should have been known there, the share that Ollama must confirm

Chain = list[int]  # of a prompt: for each block a hash of all up to its end


def chain_of(call: ModelCall) -> Chain:
    """The hashes of the beginnings of ``call``, one a block; empty when it is too short to matter."""
    opening = call.opening
    whole = min(len(opening) // BLOCK, MOST_BLOCKS)
    if whole < LEAST_BLOCKS:
        return []
    known, chain = hash(call.model), []
    for start, end in pairwise(range(0, (whole + 1) * BLOCK, BLOCK)):
        known = hash((known, opening[start:end]))
        chain.append(known)
    return chain


class Match(NamedTuple):
    """Where the longest known beginning of a prompt was seen last, how many blocks it has, and when that was."""

    host: str
    blocks: int
    at: float


class Affinity:
    """For each beginning of a prompt the host that saw it last, the least recently seen forgotten first."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._seen: OrderedDict[int, tuple[str, float]] = OrderedDict()  # by beginning: where and when
        self._gone: dict[str, float] = {}  # by host: what it saw up to then it has no more

    def __repr__(self) -> str:
        return f"<Affinity of {len(self._seen)} beginnings>"

    def find(self, chain: Chain) -> Match | None:
        """Where the longest beginning was seen last; None when it is not known."""
        for blocks in range(len(chain), LEAST_BLOCKS - 1, -1):
            host, at = self._seen.get(chain[blocks - 1], ("", 0.0))
            if host and at > self._gone.get(host, float("-inf")):
                return Match(host, blocks, at)
        return None

    def note(self, chain: Chain, host: str) -> None:
        """``host`` reads this prompt now."""
        now = self._clock()
        for beginning in chain:
            self._seen[beginning] = host, now
            self._seen.move_to_end(beginning)
        while len(self._seen) > MOST_KNOWN:
            self._seen.popitem(last=False)

    def forget(self, host: str) -> None:
        """``host`` has lost all that it has read."""
        self._gone[host] = self._clock()

    def correct(self, match: Match, chain: Chain, cached_share: float) -> None:
        """Where ``match`` sent this prompt, ``cached_share`` of it had been kept.

        What has left its memory takes along what was read before it.
        """
        if cached_share < BELIEVED * match.blocks / len(chain):
            self._gone[match.host] = max(self._gone.get(match.host, float("-inf")), match.at)
