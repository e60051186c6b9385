"""The shared store of one host: answers and claims in a SQLite file, see ``stores`` for its layout."""

import os
import sqlite3
import time
import zlib
from collections.abc import Callable, Iterable

from .sqlite_file import Damaged, SqliteFile
from .store import OVERHEAD, WANTED_FOR, Claim, StoreError

MARK_EVERY = 0.2  # seconds between two marks of waiting on one claim, so that a poll is seldom a write
BATCH = 500  # keys touched in one transaction, so that no other process waits long
_LIVES = "since <= :now AND :now < since + ttl"  # a time in the future is of an earlier boot: expired


class SqliteStore:
    """A Store in the file ``path``. ``clock`` must be the same for all processes of the host and never step back."""

    concurrency = 1

    def __init__(self, path: str, max_entries: int, max_bytes: int, clock: Callable[[], float] = time.monotonic):
        """Raises StoreError when the directory is missing; the file itself is opened by the first operation."""
        self.name = f"sqlite:///{path}"
        self.max_entries, self.max_bytes = max_entries, max_bytes
        self._clock = clock
        path = os.path.abspath(path)
        if not os.path.isdir(os.path.dirname(path)):
            raise StoreError(f"the directory of {self.name} does not exist: create {os.path.dirname(path)}")
        self._file = SqliteFile(path)
        self._swept = 0.0

    def get(self, key: str) -> bytes | None:
        with self._file.using() as db:
            row = db.execute("SELECT value, length, crc FROM entries JOIN answers USING (id) WHERE key = ?",
                             (key,)).fetchone()
            if row and (len(row[0]), zlib.crc32(row[0])) != row[1:]:
                raise Damaged("an answer is not as it was written")
        return row[0] if row else None

    def set(self, key: str, value: bytes) -> int:
        size = len(value) + OVERHEAD
        if size > self.max_bytes or self.max_entries < 1:
            self.delete(key)
            return 0
        with self._file.writing() as db:
            entries, total, tick = self._totals(db)
            old = self._remove(db, "key = ?", key)
            row = db.execute("INSERT INTO entries (key, used, length, crc) VALUES (?, ?, ?, ?)",
                             (key, tick + 1, len(value), zlib.crc32(value)))
            db.execute("INSERT INTO answers VALUES (?, ?)", (row.lastrowid, value))
            entries, total, evicted = entries + (not old), total + size - old, 0
            while entries > self.max_entries or total > self.max_bytes:
                if not (removed := self._remove(db, "used = (SELECT min(used) FROM entries)")):
                    raise Damaged("the totals are not those of the entries")
                entries, total, evicted = entries - 1, total - removed, evicted + 1
            db.execute("UPDATE totals SET entries = ?, bytes = ?, tick = ?", (entries, total, tick + 1))
        return evicted

    def touch(self, keys: Iterable[str]) -> None:
        wanted = list(keys)
        for start in range(0, len(wanted), BATCH):
            batch = wanted[start:start + BATCH]
            with self._file.writing() as db:
                tick = self._totals(db)[2]
                db.executemany("UPDATE entries SET used = ? WHERE key = ?", enumerate(batch, tick + 1))
                db.execute("UPDATE totals SET tick = ?", (tick + len(batch),))

    def delete(self, key: str) -> None:
        with self._file.writing() as db:
            if old := self._remove(db, "key = ?", key):
                db.execute("UPDATE totals SET entries = entries - 1, bytes = bytes - ?", (old,))

    def clear(self) -> None:
        with self._file.writing() as db:
            db.execute("DELETE FROM entries")
            db.execute("DELETE FROM answers")
            db.execute("UPDATE totals SET entries = 0, bytes = 0")

    def size(self) -> tuple[int, int]:
        with self._file.using() as db:
            return self._totals(db)[:2]

    def claim(self, key: str, token: str, ttl: float) -> Claim | None:
        with self._file.writing() as db:
            now = self._clock()  # read inside: while we waited to write, another may have claimed
            self._sweep(db, now)
            found = db.execute(f"SELECT token FROM claims WHERE key = :key AND token <> :token AND outcome IS NULL"
                               f" AND {_LIVES}", {"now": now, "key": key, "token": token}).fetchone()
            if found:
                db.execute("UPDATE claims SET wanted = ? WHERE key = ?", (now, key))
            else:
                db.execute("REPLACE INTO claims VALUES (?, ?, ?, ?, NULL, NULL)", (key, token, now, ttl))
        return Claim(found[0], None) if found else None

    def renew(self, key: str, token: str, ttl: float) -> bool:
        return self._holding("UPDATE claims SET since = :now, ttl = :ttl", key, token, ttl=ttl)

    def settle(self, key: str, token: str, outcome: bytes, linger: float) -> None:
        self._holding("UPDATE claims SET since = :now, ttl = :ttl, outcome = :outcome", key, token,
                      ttl=linger, outcome=outcome)

    def release(self, key: str, token: str) -> None:
        self._holding("DELETE FROM claims", key, token)

    def peek(self, key: str, token: str) -> Claim | None:
        outcome, lives, wanted, now = self._look(key, token)
        if not lives:
            return None
        if outcome is None and (wanted is None or now - wanted >= MARK_EVERY):
            with self._file.writing() as db:
                db.execute("UPDATE claims SET wanted = ? WHERE key = ? AND token = ?", (self._clock(), key, token))
        return Claim(token, outcome)

    def wanted(self, key: str, token: str) -> bool:
        _, lives, wanted, now = self._look(key, token)
        return lives and wanted is not None and now - wanted < WANTED_FOR

    def ping(self) -> None:
        with self._file.writing() as db:
            db.execute("UPDATE totals SET tick = ?", (self._totals(db)[2] + 1,))

    def close(self) -> None:
        self._file.close()

    def _totals(self, db: sqlite3.Connection) -> tuple[int, int, int]:
        """Entries, bytes and the last tick."""
        row = db.execute("SELECT entries, bytes, tick FROM totals").fetchone()
        if row is None:
            raise Damaged("the totals are gone")
        return row

    def _remove(self, db: sqlite3.Connection, which: str, *values: str) -> int:
        """Remove the one entry, if any, for which ``which`` holds. Returns its counted bytes, 0 for none."""
        row = db.execute(f"SELECT id, length FROM entries WHERE {which}", values).fetchone()
        if row is None:
            return 0
        db.execute("DELETE FROM entries WHERE id = ?", row[:1])
        db.execute("DELETE FROM answers WHERE id = ?", row[:1])
        return row[1] + OVERHEAD

    def _holding(self, change: str, key: str, token: str, **values: object) -> bool:
        """Do ``change`` to the claim if it is still ours and under way; say whether it was."""
        with self._file.writing() as db:
            values.update(key=key, token=token, now=self._clock())
            where = f" WHERE key = :key AND token = :token AND outcome IS NULL AND {_LIVES}"
            return db.execute(change + where, values).rowcount > 0

    def _look(self, key: str, token: str) -> tuple[bytes | None, bool, float | None, float]:
        """Outcome, whether the claim lives, time of the last mark, and now (read after the row: never before it)."""
        with self._file.using() as db:
            row = db.execute("SELECT outcome, since, ttl, wanted FROM claims WHERE key = ? AND token = ?",
                             (key, token)).fetchone()
        now = self._clock()
        if row is None:
            return None, False, None, now
        return row[0], row[1] <= now < row[1] + row[2], row[3], now

    def _sweep(self, db: sqlite3.Connection, now: float) -> None:
        """Once a second remove the claims that are over."""
        if abs(now - self._swept) >= 1:
            db.execute(f"DELETE FROM claims WHERE NOT ({_LIVES})", {"now": now})
            self._swept = now
