"""The file behind the SQLite store: opened, checked, watched, set aside and created again.

It is in WAL mode with ``synchronous = NORMAL``: a commit survives the process, not the power. Its tables:
  entries  key, used (a tick: the higher, the later; the lowest is evicted first), length and crc of the answer
  answers  the bytes, separate from the columns that change with each use
  totals   one row: entries, bytes, the last tick, kept by the transaction that changes the entries; and the epoch
  claims   token, key, epoch, since, ttl (of the monotonic clock, which all processes of a host share), outcome
  waits    token of a claim, follower, since
A file that is damaged, or that is not ours or of an older layout, is renamed to ``<name>.corrupt-<n>`` or
``<name>.foreign-<n>`` and a new one is created; a file of a newer layout is neither changed nor used. Opening and
renaming happen under ``<name>.lock``. A deleted or replaced file is noticed by its inode.
"""

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from .. import native
from ..file_locks import lock_file
from .store import StoreError

APPLICATION, VERSION = 0x6C6C6170, 2  # "llap"; PRAGMA application_id and user_version
BUSY = 0.06  # maximum seconds to wait for another process's write
ASIDE_KEPT = 5  # damaged files kept for a post-mortem; the last of them is overwritten
# Constraints too: our writes violate none, unless pages of different times are mixed.
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CONSTRAINT)
_PASSING = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL)  # no fault of the connection
_SCHEMA = f"""
    CREATE TABLE entries (id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, used INTEGER NOT NULL,
                          length INTEGER NOT NULL, crc INTEGER NOT NULL);
    CREATE INDEX entries_used ON entries (used);
    CREATE TABLE answers (id INTEGER PRIMARY KEY, value BLOB NOT NULL);
    CREATE TABLE totals (entries INTEGER NOT NULL, bytes INTEGER NOT NULL, tick INTEGER NOT NULL, epoch TEXT NOT NULL);
    INSERT INTO totals VALUES (0, 0, 0, lower(hex(randomblob(8))));
    CREATE TABLE claims (token TEXT PRIMARY KEY, key TEXT NOT NULL, epoch TEXT NOT NULL, since REAL NOT NULL,
                         ttl REAL NOT NULL, outcome BLOB) WITHOUT ROWID;
    CREATE INDEX claims_key ON claims (key, epoch);
    CREATE TABLE waits (token TEXT NOT NULL, follower TEXT NOT NULL, since REAL NOT NULL,
                        PRIMARY KEY (token, follower)) WITHOUT ROWID;
    PRAGMA application_id = {APPLICATION};
    PRAGMA user_version = {VERSION};
"""


class Damaged(sqlite3.DatabaseError):
    """The file exists but is not what was written."""


class SqliteFile:
    """One connection to the database at ``path``, for one caller at a time, which survives changes of the file."""

    def __init__(self, path: str):
        self._path = path
        self._lock = native.allocate_lock()  # used in native threads
        self._db: sqlite3.Connection | None = None
        self._inode: tuple[int, int] | None = None  # of the file behind self._db
        self._damaged: tuple[int, int] | None = None  # of a file that must not be opened again

    @property
    def connected(self) -> bool:
        """Whether the file was open at the last use."""
        return self._db is not None

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """The connection in a transaction, which is committed unless the block fails. Raises StoreError."""
        with self.using() as db:
            db.execute("BEGIN IMMEDIATE")
            yield db
            db.execute("COMMIT")

    @contextmanager
    def using(self) -> Iterator[sqlite3.Connection]:
        """The connection, for exclusive use. Raises StoreError, with no transaction left open and the cause noted."""
        try:
            with self._lock:
                try:
                    yield self._connected()
                except BaseException as error:
                    self._after(error)
                    raise
        except (sqlite3.Error, OSError, TypeError, ValueError) as error:  # also damage that SQLite overlooked
            raise StoreError(f"{type(error).__name__}: {error}") from error

    def close(self) -> None:
        """Close the connection; the next use opens the file again."""
        with self._lock:
            self._drop()

    def _after(self, error: BaseException) -> None:
        """Roll back, and close the connection unless the cause is known to lie elsewhere."""
        if isinstance(error, Damaged) or _code(error) in _DAMAGED:
            self._damaged = self._inode
        elif _code(error) in _PASSING and self._db:
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
        """The connection to the file that is at the path now, which may have been replaced."""
        if self._db is not None:
            found = _stat(self._path)
            if found is None or (found.st_dev, found.st_ino) != self._inode:
                self._drop()
            elif found.st_size == 0:
                raise Damaged("the file was emptied")
        if self._db is None:
            with self._alone():
                self._open()
        assert self._db is not None
        return self._db

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other processes from opening or setting aside the file during the block."""
        until = time.monotonic() + BUSY
        while (lock := lock_file(self._path + ".lock")) is None:
            if time.monotonic() > until:
                raise BlockingIOError("another process is opening the file")
            native.sleep(0.002)
        try:
            yield
        finally:
            os.close(lock)

    def _open(self) -> None:
        """Connect to the file, or to a new one if it is missing, damaged or not of this program and version."""
        if _inode(self._path) is None:
            for end in ("-wal", "-shm"):  # of a deleted file, perhaps still in use by others: never share them
                with suppress(FileNotFoundError):
                    os.unlink(self._path + end)
        elif self._damaged == _inode(self._path) or self._emptied():
            self._set_aside("corrupt")
        try:
            self._db = self._connect()
            ours = self._ours(self._db)
        except sqlite3.DatabaseError as error:
            if _code(error) not in _DAMAGED:
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
        """Whether the file has lost its content, as its write-ahead log shows."""
        return os.path.getsize(self._path) == 0 and os.path.exists(self._path + "-wal")

    def _connect(self) -> sqlite3.Connection:
        # Created by itself so that only we can read it. Never opened otherwise: closing that handle would release
        # the POSIX locks of every SQLite connection this process has on the file.
        with suppress(FileExistsError):
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        return sqlite3.connect(self._path, timeout=BUSY, isolation_level=None, check_same_thread=False)

    def _ours(self, db: sqlite3.Connection) -> bool:
        """Prepare the connection; False when the file belongs to something else. A new file gets our tables."""
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
        """Rename the file with its log, so that a new one can be created and other processes notice."""
        names = (f"{self._path}.{kind}-{n}" for n in range(1, ASIDE_KEPT))
        aside = next((name for name in names if not os.path.exists(name)), f"{self._path}.{kind}-{ASIDE_KEPT}")
        for end in ("-wal", "-shm", ""):
            with suppress(FileNotFoundError):
                os.replace(self._path + end, aside + end)


def _stat(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)
    except FileNotFoundError:
        return None


def _inode(path: str) -> tuple[int, int] | None:
    found = _stat(path)
    return (found.st_dev, found.st_ino) if found else None


def _code(error: BaseException) -> int:
    """SQLite's primary result code; 0 for an error of another origin."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF
