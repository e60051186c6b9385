"""Reports between workers: each has a file in the shared directory, and a lock while it lives."""

import secrets
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from ..file_locks import is_held, lock_file
from .shared_files import Watched, replace

News = dict[str, Any]


class Peer(NamedTuple):
    """Another worker: its last report, and whether it lives."""

    name: str
    alive: bool
    news: News


class Peers:
    """The workers that share ``directory``. Reports nothing before ``join``."""

    def __init__(self, directory: Path):
        self._directory = directory
        self._name = secrets.token_hex(8)
        self._joined = False
        self._telling = threading.Lock()  # as a report is a draft first
        self._told = b""
        self._known: dict[str, tuple[Watched, News]] = {}

    def join(self) -> None:
        """Join the workers for the life of this process. Raises OSError."""
        self._directory.mkdir(parents=True, exist_ok=True)
        self._joined = lock_file(self._lock(self._name)) is not None

    def tell(self, news: News) -> None:
        """Publish ``news``, replacing the last report. Raises OSError."""
        data = orjson.dumps(news)
        with self._telling:
            if self._joined and data != self._told:
                replace(self._directory / f"{self._name}.json", data)
                self._told = data

    def others(self) -> Iterator[Peer]:
        """The last report of each other worker, including dead ones until they are forgotten."""
        for path in self._directory.glob("*.json"):
            if path.stem == self._name:
                continue
            watched, news = self._known.get(path.stem) or (Watched(path), {})
            try:
                data = watched.read()
            except FileNotFoundError:
                self._known.pop(path.stem, None)
                continue
            if data is not None:
                news = orjson.loads(data)
                self._known[path.stem] = watched, news
            yield Peer(path.stem, is_held(self._lock(path.stem)), news)

    def forget(self, name: str) -> None:
        """Remove the files of a dead worker."""
        self._known.pop(name, None)
        for path in (self._directory / f"{name}.json", self._lock(name)):
            path.unlink(missing_ok=True)

    def _lock(self, name: str) -> Path:
        return self._directory / f"{name}.lock"
