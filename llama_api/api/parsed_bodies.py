"""The last parsed bodies: a repeated question mostly has the same bytes, and parsing them is half of a hit."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, Protocol, TypeVar

REMEMBERED, REMEMBERED_BYTES = 1024, 2048  # bodies, and the size of the largest one: a few megabytes at most

T = TypeVar("T")


class Parser(Protocol[T]):
    """Returns ``read(body)``, possibly from memory."""

    def __call__(self, read: Callable[[bytes], T], body: bytes) -> T: ...


def parse_afresh(read: Callable[[bytes], T], body: bytes) -> T:
    """The result of ``read(body)``; nothing is remembered."""
    return read(body)


class ParsedBodies:
    """The results of the last small bodies. They contain prompts, so a purge must ``forget`` them."""

    def __init__(self) -> None:
        self._remembered: Any = lru_cache(REMEMBERED)(parse_afresh)

    def parse(self, read: Callable[[bytes], T], body: bytes) -> T:
        """The result of ``read(body)``; exceptions are not remembered."""
        if len(body) > REMEMBERED_BYTES:
            return read(body)
        found: T = self._remembered(read, body)
        return found

    def forget(self) -> None:
        """Forget all of them."""
        self._remembered.cache_clear()
