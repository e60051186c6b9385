"""The shared store of one host: a SQLite file in WAL mode, see ``stores`` for its layout."""

import fcntl
import os
import sqlite3
import threading
import time
import weakref
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress

from llama_api.store_types import OVERHEAD, WANTED_FOR, Claim, StoreError

APPLICATION, VERSION = 0x6C6C6170, 1  # "llap"; PRAGMA application_id and user_version
BUSY = 0.06  # seconds an operation may wait for another process's write
MARK_EVERY = 0.2  # seconds between two marks of waiting on one claim, so that a poll is seldom a write
BATCH = 500  # keys touched in one transaction, so that no other process waits long
ASIDE_KEPT = 5  # damaged files kept for a post-mortem; the last of them is overwritten
_LIVES = "since <= :now AND :now < since + ttl"  # a time in the future is of an earlier boot: expired
_SCHEMA = f"""
    CREATE TABLE entries (id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, used INTEGER NOT NULL,
                          length INTEGER NOT NULL, crc INTEGER NOT NULL);
    CREATE INDEX entries_used ON entries (used);
    CREATE TABLE answers (id INTEGER PRIMARY KEY, value BLOB NOT NULL);
    CREATE TABLE totals (entries INTEGER NOT NULL, bytes INTEGER NOT NULL, tick INTEGER NOT NULL);
    INSERT INTO totals VALUES (0, 0, 0);
    CREATE TABLE claims (key TEXT PRIMARY KEY, token TEXT NOT NULL, since REAL NOT NULL, ttl REAL NOT NULL,
                         outcome BLOB, wanted REAL);
    PRAGMA application_id = {APPLICATION};
    PRAGMA user_version = {VERSION};
"""


class _Damaged(sqlite3.DatabaseError):
    """The file is there but is not what was written."""


class SqliteStore:
    """A Store in the file ``path``. ``clock`` must be the same for all processes of the host and never step back."""

    concurrency = 1

    def __init__(self, path: str, max_entries: int, max_bytes: int, clock: Callable[[], float] = time.monotonic):
        """Raises StoreError when the directory is missing; the file itself is opened by the first operation."""
        self.name = f"sqlite:///{path}"
        self.max_entries, self.max_bytes = max_entries, max_bytes
        self._path, self._clock = os.path.abspath(path), clock
        if not os.path.isdir(os.path.dirname(self._path)):
            raise StoreError(f"the directory of {self.name} does not exist: create {os.path.dirname(self._path)}")
        self._lock = threading.Lock()
        self._db: sqlite3.Connection | None = None
        self._inode: tuple[int, int] | None = None  # of the file behind self._db
        self._damaged: tuple[int, int] | None = None  # of a file that must not be opened again
        self._swept = 0.0
        _stores.add(self)

    def get(self, key: str) -> bytes | None:
        with self._using() as db:
            row = db.execute("SELECT value, length, crc FROM entries JOIN answers USING (id) WHERE key = ?",
                             (key,)).fetchone()
            if row and (len(row[0]), zlib.crc32(row[0])) != row[1:]:
                raise _Damaged("an answer is not as it was written")
        return row[0] if row else None

    def set(self, key: str, value: bytes) -> int:
        size = len(value) + OVERHEAD
        if size > self.max_bytes or self.max_entries < 1:
            self.delete(key)
            return 0
        with self._writing() as db:
            entries, total, tick = db.execute("SELECT entries, bytes, tick FROM totals").fetchone()
            old = self._remove(db, "key = ?", key)
            row = db.execute("INSERT INTO entries (key, used, length, crc) VALUES (?, ?, ?, ?)",
                             (key, tick + 1, len(value), zlib.crc32(value)))
            db.execute("INSERT INTO answers VALUES (?, ?)", (row.lastrowid, value))
            entries, total, evicted = entries + (not old), total + size - old, 0
            while entries > self.max_entries or total > self.max_bytes:
                total -= self._remove(db, "used = (SELECT min(used) FROM entries)")
                entries, evicted = entries - 1, evicted + 1
            db.execute("UPDATE totals SET entries = ?, bytes = ?, tick = ?", (entries, total, tick + 1))
        return evicted

    def touch(self, keys: Iterable[str]) -> None:
        wanted = list(keys)
        for start in range(0, len(wanted), BATCH):
            batch = wanted[start:start + BATCH]
            with self._writing() as db:
                (tick,) = db.execute("SELECT tick FROM totals").fetchone()
                db.executemany("UPDATE entries SET used = ? WHERE key = ?", enumerate(batch, tick + 1))
                db.execute("UPDATE totals SET tick = ?", (tick + len(batch),))

    def delete(self, key: str) -> None:
        with self._writing() as db:
            if old := self._remove(db, "key = ?", key):
                db.execute("UPDATE totals SET entries = entries - 1, bytes = bytes - ?", (old,))

    def clear(self) -> None:
        with self._writing() as db:
            db.execute("DELETE FROM entries")
            db.execute("DELETE FROM answers")
            db.execute("UPDATE totals SET entries = 0, bytes = 0")

    def size(self) -> tuple[int, int]:
        with self._using() as db:
            return db.execute("SELECT entries, bytes FROM totals").fetchone()

    def claim(self, key: str, token: str, ttl: float) -> Claim | None:
        with self._writing() as db:
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
            with self._writing() as db:
                db.execute("UPDATE claims SET wanted = ? WHERE key = ? AND token = ?", (self._clock(), key, token))
        return Claim(token, outcome)

    def wanted(self, key: str, token: str) -> bool:
        _, lives, wanted, now = self._look(key, token)
        return lives and wanted is not None and now - wanted < WANTED_FOR

    def ping(self) -> None:
        with self._writing() as db:
            db.execute("UPDATE totals SET tick = tick + 1")

    def close(self) -> None:
        with self._lock:
            self._drop()

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
        with self._writing() as db:
            values.update(key=key, token=token, now=self._clock())
            where = f" WHERE key = :key AND token = :token AND outcome IS NULL AND {_LIVES}"
            return db.execute(change + where, values).rowcount > 0

    def _look(self, key: str, token: str) -> tuple[bytes | None, bool, float | None, float]:
        """Outcome, whether the claim lives, time of the last mark, and now (read after the row: never before it)."""
        with self._using() as db:
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

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._using() as db:
            db.execute("BEGIN IMMEDIATE")
            yield db
            db.execute("COMMIT")

    @contextmanager
    def _using(self) -> Iterator[sqlite3.Connection]:
        """The connection, ours alone. Whatever goes wrong leaves no transaction open and the cause noted."""
        try:
            with self._lock:
                try:
                    yield self._connected()
                except BaseException as error:
                    self._after(error)
                    raise
        except (sqlite3.Error, OSError) as error:
            raise StoreError(f"{type(error).__name__}: {error}") from error

    def _after(self, error: BaseException) -> None:
        """Undo what was begun; let go of the connection unless the cause is known to lie elsewhere."""
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if isinstance(error, _Damaged) or code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            self._damaged = self._inode
        elif code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL) and self._db:
            with suppress(sqlite3.Error):
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                return
        self._drop()

    def _drop(self) -> None:
        if self._db is not None:
            with suppress(sqlite3.Error):
                self._db.close()
        self._db = self._inode = None

    def _connected(self) -> sqlite3.Connection:
        """The connection to the file that is at the path now, which may be another than a moment ago."""
        if self._db is not None:
            found = _inode(self._path)
            if found != self._inode:
                self._drop()
            elif os.path.getsize(self._path) == 0:
                raise _Damaged("the file was emptied")
        if self._db is None:
            with self._alone():
                self._open()
        assert self._db is not None
        return self._db

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other processes from opening or setting aside the file meanwhile."""
        handle = os.open(self._path + ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            until = time.monotonic() + BUSY
            while True:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > until:
                        raise
                    time.sleep(0.002)
            yield
        finally:
            os.close(handle)

    def _open(self) -> None:
        """Connect to the file, or to a fresh one when it is missing, damaged or not of this program and version."""
        if _inode(self._path) is None:
            for end in ("-wal", "-shm"):  # of a deleted file, perhaps still in use by others: never to be shared
                with suppress(FileNotFoundError):
                    os.unlink(self._path + end)
        elif self._damaged == _inode(self._path) or self._emptied():
            self._set_aside("corrupt")
        try:
            self._db = self._connect()
            ours = self._ours(self._db)
        except sqlite3.DatabaseError as error:
            if getattr(error, "sqlite_errorcode", 0) & 0xFF not in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                raise
            ours, aside = False, "corrupt"
        else:
            aside = "foreign"
        if not ours:
            self._drop()
            self._set_aside(aside)
            self._db = self._connect()
            self._ours(self._db)
        self._inode, self._damaged = _inode(self._path), None

    def _emptied(self) -> bool:
        """Whether the file has no content although it once had, as its write-ahead log tells."""
        return os.path.getsize(self._path) == 0 and os.path.exists(self._path + "-wal")

    def _connect(self) -> sqlite3.Connection:
        # Created by itself so that only we can read it. Never opened otherwise: closing that handle would release
        # the POSIX locks of every SQLite connection this process has on the file.
        with suppress(FileExistsError):
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        return sqlite3.connect(self._path, timeout=BUSY, isolation_level=None, check_same_thread=False)

    def _ours(self, db: sqlite3.Connection) -> bool:
        """Prepare the connection; False when the file belongs to something else. A fresh file gets our tables."""
        (application,) = db.execute("PRAGMA application_id").fetchone()
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if application == APPLICATION and version > VERSION:
            raise sqlite3.NotSupportedError(f"a newer version of this program made the file (format {version})")
        (tables,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if tables and (application, version) != (APPLICATION, VERSION):
            return False
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        db.execute(f"PRAGMA journal_size_limit = {16 << 20}")
        if not tables:
            db.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} COMMIT;")
        return True

    def _set_aside(self, kind: str) -> None:
        """Rename the file with its log, so that a fresh one can be made and others notice."""
        names = (f"{self._path}.{kind}-{n}" for n in range(1, ASIDE_KEPT))
        aside = next((name for name in names if not os.path.exists(name)), f"{self._path}.{kind}-{ASIDE_KEPT}")
        for end in ("-wal", "-shm", ""):
            with suppress(FileNotFoundError):
                os.replace(self._path + end, aside + end)


def _inode(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


# SQLite's own book-keeping of locks does not survive a fork while a connection is open, so none is open across one.
_stores: "weakref.WeakSet[SqliteStore]" = weakref.WeakSet()
_forking: list[SqliteStore] = []


def _before_fork() -> None:
    for store in list(_stores):
        store._lock.acquire()
        _forking.append(store)
        store._drop()


def _after_fork() -> None:
    while _forking:
        _forking.pop()._lock.release()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork)
