"""Prefix affinity: the Ollama that last read the beginning of a prompt need not read it again."""

import time
from collections import OrderedDict
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

from ..model_call import ModelCall

BLOCK = 256  # characters
LEAST_BLOCKS = 4  # a shorter beginning is read again as fast as it is looked up
MOST_BLOCKS = 4096  # of one prompt
MOST_KNOWN = 32768  # blocks that are remembered
BELIEVED = 0.5  # the share of an expected match that Ollama must confirm

Chain = list[int]  # for each block of a prompt, a hash of the text up to its end


def chain_of(call: ModelCall) -> Chain:
    """The hashes of the beginnings of ``call``, one per block; empty when it is too short to matter."""
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
    """The longest known beginning of a prompt: the host that last read it, its number of blocks, and when."""

    host: str
    blocks: int
    at: float


class Affinity:
    """The host that last read each beginning of a prompt; the least recently read are forgotten first."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._seen: OrderedDict[int, tuple[str, float]] = OrderedDict()  # by beginning: host and time
        self._gone: dict[str, float] = {}  # by host: beginnings read up to then are lost

    def __repr__(self) -> str:
        return f"<Affinity of {len(self._seen)} beginnings>"

    def find(self, chain: Chain) -> Match | None:
        """The match of the longest known beginning, or None."""
        for blocks in range(len(chain), LEAST_BLOCKS - 1, -1):
            host, at = self._seen.get(chain[blocks - 1], ("", 0.0))
            if host and at > self._gone.get(host, float("-inf")):
                return Match(host, blocks, at)
        return None

    def note(self, chain: Chain, host: str) -> None:
        """Note that ``host`` reads this prompt now."""
        now = self._clock()
        for beginning in chain:
            self._seen[beginning] = host, now
            self._seen.move_to_end(beginning)
        while len(self._seen) > MOST_KNOWN:
            self._seen.popitem(last=False)

    def forget(self, host: str) -> None:
        """Note that ``host`` has lost everything that it has read."""
        self._gone[host] = self._clock()

    def correct(self, match: Match, chain: Chain, cached_share: float) -> None:
        """Compare ``match`` with the ``cached_share`` of the prompt that its host had kept.

        If that is too little, everything that the host read up to the match counts as lost.
        """
        if cached_share < BELIEVED * match.blocks / len(chain):
            self._gone[match.host] = max(self._gone.get(match.host, float("-inf")), match.at)
