"""The shared store of one host: answers and claims in a SQLite file; sqlite_file describes its layout."""

import functools
import json
import os
import secrets
import sqlite3
import time
import zlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from .native_thread import NativeThread
from .sqlite_file import Damaged, SqliteFile
from .store import OUTDATED, OVERHEAD, UNDER_WAY, WANTED_FOR, Claim, Found, Lease, Renewal, StoreError

BUDGET = 0.08  # maximum seconds of an operation
SLOW_BUDGET = 1.0  # the same for opening, purging or closing the file, which waits for the disk several times
MARK_EVERY = 0.2  # seconds between two marks of waiting for one claim, so that few polls write
BATCH = 500  # keys touched per transaction, so that no other process waits long
_LIVES = "since <= :now AND :now < since + ttl"  # a time in the future is of an earlier boot, so expired
_WAITS = "since <= :now AND :now < since + :wanted_for"
_GIVEN = "IN (SELECT value FROM json_each(:tokens))"
_Operation = TypeVar("_Operation", bound=Callable[..., Any])


def _natively(operation: _Operation) -> _Operation:
    """Run ``operation`` of a SqliteStore in its native thread, so that locks and disks do not stop all greenlets.

    Raises StoreError when it exceeds its budget.
    """
    @functools.wraps(operation)
    def run(self: "SqliteStore", *args: Any) -> Any:
        slow = operation.__name__ in ("clear", "close") or not self._file.connected
        try:
            return self._thread.call(SLOW_BUDGET if slow else BUDGET, functools.partial(operation, self, *args))
        except (TimeoutError, RuntimeError) as error:  # RuntimeError: no thread can be started
            raise StoreError(f"{type(error).__name__}: {error}") from error

    return run  # type: ignore[return-value]


class SqliteStore:
    """A Store in the file ``path``. ``clock`` must be the same for all processes of the host and never step back."""

    concurrency = 1

    def __init__(self, path: str, max_entries: int, max_bytes: int, clock: Callable[[], float] = time.monotonic):
        """Raise StoreError when the directory is missing. The first operation opens the file."""
        self.name = f"sqlite:///{path}"
        self.max_entries, self.max_bytes = max_entries, max_bytes
        self._clock = clock
        path = os.path.abspath(path)
        if not os.path.isdir(os.path.dirname(path)):
            raise StoreError(f"the directory of {self.name} does not exist: create {os.path.dirname(path)}")
        self._file = SqliteFile(path)
        self._thread = NativeThread()
        self._swept = 0.0

    def get(self, key: str) -> Found:
        return self.get_many([key])[0]

    @_natively
    def get_many(self, keys: Sequence[str]) -> list[Found]:
        with self._file.using() as db:
            rows = db.execute("SELECT epoch, answers.value, length, crc FROM totals JOIN json_each(?) AS given"
                              " LEFT JOIN entries ON entries.key = given.value"
                              " LEFT JOIN answers ON answers.id = entries.id ORDER BY given.id",
                              (json.dumps(keys),)).fetchall()
            if len(rows) != len(keys):
                raise Damaged("the totals are gone")
            for _, value, length, crc in rows:
                if length is not None and (value is None or (len(value), zlib.crc32(value)) != (length, crc)):
                    raise Damaged("an answer is not as it was written")
        return [Found(value, epoch) for epoch, value, _, _ in rows]

    @_natively
    def set(self, key: str, value: bytes, epoch: str) -> int:
        with self._file.writing() as db:
            entries, total, tick, now = self._totals(db)
            if epoch != now:
                return OUTDATED
            if removed := self._remove(db, "key = ?", key):
                entries, total = entries - 1, total - removed
            evicted, size = 0, len(value) + OVERHEAD
            if size <= self.max_bytes and self.max_entries >= 1:
                tick, entries, total = tick + 1, entries + 1, total + size
                row = db.execute("INSERT INTO entries (key, used, length, crc) VALUES (?, ?, ?, ?)",
                                 (key, tick, len(value), zlib.crc32(value)))
                db.execute("INSERT INTO answers VALUES (?, ?)", (row.lastrowid, value))
                while entries > self.max_entries or total > self.max_bytes:
                    if not (removed := self._remove(db, "used = (SELECT min(used) FROM entries)")):
                        raise Damaged("the totals are not those of the entries")
                    entries, total, evicted = entries - 1, total - removed, evicted + 1
            db.execute("UPDATE totals SET entries = ?, bytes = ?, tick = ?", (entries, total, tick))
        return evicted

    @_natively
    def touch(self, keys: Iterable[str]) -> None:
        wanted = list(dict.fromkeys(reversed(list(keys))))[::-1]  # each at its last position
        for start in range(0, len(wanted), BATCH):
            batch = wanted[start:start + BATCH]
            with self._file.writing() as db:
                tick = self._totals(db)[2]
                db.execute("UPDATE entries SET used = :tick + given.key + 1 FROM json_each(:keys) AS given"
                           " WHERE entries.key = given.value", {"tick": tick, "keys": json.dumps(batch)})
                db.execute("UPDATE totals SET tick = ?", (tick + len(batch),))

    @_natively
    def delete(self, key: str) -> None:
        with self._file.writing() as db:
            if old := self._remove(db, "key = ?", key):
                db.execute("UPDATE totals SET entries = entries - 1, bytes = bytes - ?", (old,))

    @_natively
    def clear(self) -> str:
        epoch = secrets.token_hex(8)
        with self._file.writing() as db:
            db.execute("DELETE FROM entries")
            db.execute("DELETE FROM answers")
            db.execute("UPDATE totals SET entries = 0, bytes = 0, epoch = ?", (epoch,))
            self._sweep(db, self._clock())
        return epoch

    @_natively
    def size(self) -> tuple[int, int]:
        with self._file.using() as db:
            return self._totals(db)[:2]

    @_natively
    def claim(self, key: str, token: str, ttl: float) -> Claim:
        with self._file.writing() as db:
            now = self._clock()  # read in the transaction: another process may have claimed while we waited
            if abs(now - self._swept) >= 1:
                self._sweep(db, now)
            epoch = self._totals(db)[3]
            row = db.execute(f"SELECT token FROM claims WHERE key = :key AND epoch = :epoch AND token <> :token"
                             f" AND outcome IS NULL AND {_LIVES}",
                             {"now": now, "key": key, "epoch": epoch, "token": token}).fetchone()
            if row:
                db.execute("REPLACE INTO waits VALUES (?, ?, ?)", (row[0], token, now))
            else:
                db.execute("REPLACE INTO claims VALUES (?, ?, ?, ?, ?, NULL)", (token, key, epoch, now, ttl))
        return Claim(key, epoch, row[0] if row else token)

    @_natively
    def peek(self, claim: Claim, follower: str) -> bytes | None:
        with self._file.using() as db:
            row = db.execute("SELECT outcome, claims.since, ttl, waits.since FROM claims LEFT JOIN waits"
                             " ON waits.token = claims.token AND follower = ? WHERE claims.token = ?",
                             (follower, claim.token)).fetchone()
        now = self._clock()  # read after the row, so never earlier than it
        if row is None or not row[1] <= now < row[1] + row[2]:
            return None
        outcome, marked = row[0], row[3]
        if outcome is None and marked is not None and marked <= now < marked + MARK_EVERY:
            return UNDER_WAY
        if outcome is None:
            with self._file.writing() as db:
                db.execute("REPLACE INTO waits VALUES (?, ?, ?)", (claim.token, follower, now))
            return UNDER_WAY
        with suppress(StoreError), self._file.writing() as db:  # it expires in any case
            db.execute("DELETE FROM waits WHERE token = ? AND follower = ?", (claim.token, follower))
            if not self._wanted(db, [claim.token], now):
                self._end(db, claim.token)
        return bytes(outcome)

    @_natively
    def settle(self, claim: Claim, outcome: bytes, linger: float) -> None:
        with self._file.writing() as db:
            now = self._clock()
            if self._wanted(db, [claim.token], now):
                db.execute(f"UPDATE claims SET since = :now, ttl = :ttl, outcome = :outcome WHERE token = :token"
                           f" AND outcome IS NULL AND {_LIVES}",
                           {"now": now, "ttl": linger, "outcome": outcome, "token": claim.token})
            else:
                self._end(db, claim.token, under_way=True)

    @_natively
    def release(self, claim: Claim) -> None:
        with self._file.writing() as db:
            self._end(db, claim.token, under_way=True)

    @_natively
    def renew(self, claims: Sequence[Claim], leases: Sequence[Lease], ttl: float) -> Renewal:
        """As in Store; ``leases`` is empty, as this store has none."""
        tokens = [claim.token for claim in claims]
        if not tokens:
            with self._file.using() as db:
                return Renewal(self._totals(db)[3], frozenset())
        with self._file.writing() as db:
            now = self._clock()
            db.execute(f"UPDATE claims SET since = :now, ttl = :ttl WHERE token {_GIVEN} AND outcome IS NULL"
                       f" AND {_LIVES}", {"now": now, "ttl": ttl, "tokens": json.dumps(tokens)})
            return Renewal(self._totals(db)[3], self._wanted(db, tokens, now))

    @_natively
    def ping(self) -> None:
        with self._file.writing() as db:
            db.execute("UPDATE totals SET tick = ?", (self._totals(db)[2] + 1,))

    @_natively
    def close(self) -> None:
        self._file.close()

    def _totals(self, db: sqlite3.Connection) -> tuple[int, int, int, str]:
        """Entries, bytes, the last tick and the epoch."""
        row = db.execute("SELECT entries, bytes, tick, epoch FROM totals").fetchone()
        if row is None:
            raise Damaged("the totals are gone")
        return row

    def _remove(self, db: sqlite3.Connection, which: str, *values: str) -> int:
        """Remove the entry that matches ``which``, if any. Returns its counted bytes, 0 for none."""
        row = db.execute(f"SELECT id, length FROM entries WHERE {which}", values).fetchone()
        if row is None:
            return 0
        db.execute("DELETE FROM entries WHERE id = ?", row[:1])
        db.execute("DELETE FROM answers WHERE id = ?", row[:1])
        return row[1] + OVERHEAD

    def _wanted(self, db: sqlite3.Connection, tokens: list[str], now: float) -> frozenset[str]:
        """The unexpired claims that a process waits for."""
        rows = db.execute(f"SELECT DISTINCT token FROM claims JOIN (SELECT token FROM waits WHERE {_WAITS})"
                          f" USING (token) WHERE token {_GIVEN} AND {_LIVES}",
                          {"tokens": json.dumps(tokens), "now": now, "wanted_for": WANTED_FOR})
        return frozenset(token for token, in rows)

    def _end(self, db: sqlite3.Connection, token: str, under_way: bool = False) -> None:
        """Remove the claim, or only if it has no outcome yet."""
        only = " AND outcome IS NULL" if under_way else ""
        if db.execute(f"DELETE FROM claims WHERE token = ?{only}", (token,)).rowcount:
            db.execute("DELETE FROM waits WHERE token = ?", (token,))

    def _sweep(self, db: sqlite3.Connection, now: float) -> None:
        """Remove expired claims and waits."""
        db.execute(f"DELETE FROM claims WHERE NOT ({_LIVES})", {"now": now})
        db.execute(f"DELETE FROM waits WHERE NOT ({_WAITS})", {"now": now, "wanted_for": WANTED_FOR})
        self._swept = now
