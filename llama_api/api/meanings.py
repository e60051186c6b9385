"""What bodies mean, remembered: a repeated question mostly comes in the same bytes, and reading it is half of a hit."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, Protocol, TypeVar

REMEMBERED, REMEMBERED_BYTES = 1024, 2048  # bodies, and the size of the largest one: a few megabytes at most

T = TypeVar("T")


class Recall(Protocol[T]):
    """Tells what a body means by ``meaning``, which it may call or not."""

    def __call__(self, meaning: Callable[[bytes], T], body: bytes) -> T: ...


def afresh(meaning: Callable[[bytes], T], body: bytes) -> T:
    """What ``body`` means, with nothing remembered."""
    return meaning(body)


class Meanings:
    """The meanings of the small bodies that came last. They hold prompts, so a purge has them forgotten."""

    def __init__(self) -> None:
        self._remembered: Any = lru_cache(REMEMBERED)(afresh)

    def of(self, meaning: Callable[[bytes], T], body: bytes) -> T:
        """What ``body`` means; what ``meaning`` raises is not remembered."""
        if len(body) > REMEMBERED_BYTES:
            return meaning(body)
        found: T = self._remembered(meaning, body)
        return found

    def forget(self) -> None:
        """Forget all of them."""
        self._remembered.cache_clear()
