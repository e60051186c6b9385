"""A read-only inspection of the shared store; the service itself would set a damaged file aside."""

import os
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from typing import NamedTuple
from urllib.parse import quote

from .guarded import open_store
from .sqlite_file import APPLICATION, VERSION
from .store import StoreError

BUSY = 1.0  # seconds to wait for another process's write


class Examination(NamedTuple):
    """The content of the store, and the seconds that a round trip took."""

    entries: int
    bytes: int
    seconds: float


def inspect_store(url: str) -> Examination:
    """Examine the store at ``url``. Raises StoreError; its text is a sentence without a password."""
    if url.startswith("sqlite:///"):
        path = os.path.abspath(url.removeprefix("sqlite:///"))
        try:
            with closing(sqlite3.connect(f"file:{quote(path)}?mode=ro", uri=True, timeout=BUSY)) as db:
                _require_ours(db)
                return _timed(lambda: db.execute("SELECT entries, bytes FROM totals").fetchone())
        except sqlite3.Error as error:
            raise StoreError(f"{type(error).__name__}: {error}") from error
    with closing(open_store(url, 1, 1)) as store:
        store.size()  # the first operation connects
        return _timed(store.size)


def _require_ours(db: sqlite3.Connection) -> None:
    (application,) = db.execute("PRAGMA application_id").fetchone()
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if (application, version) != (APPLICATION, VERSION):
        raise StoreError("the file is not a cache of this version of the service, which would not use what is in it")


def _timed(size: Callable[[], tuple[int, int]]) -> Examination:
    started = time.monotonic()
    entries, held = size()
    return Examination(entries, held, time.monotonic() - started)
