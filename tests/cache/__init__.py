"""Helpers for the tests of the cache."""

import sqlite3
import subprocess
import sys
import textwrap
from contextlib import closing, contextmanager

KEYS = [f"{n:064x}" for n in range(1500)]
LONG = 30.0  # seconds that no test takes


def put(store, key, value):
    """Set an entry of the present epoch."""
    return store.set(key, value, store.get(key).epoch)


def got(store, key):
    """The value of an entry."""
    return store.get(key).value


@contextmanager
def other_connection(path):
    """A connection to a SQLite file as another program would have it: it knows nothing of ours."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        yield db


def is_sound(path):
    """Whether SQLite finds no fault in the file."""
    with other_connection(path) as db:
        return db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def python(program, *args):
    """Run ``program`` in another process: to close a SQLite file in this one would release its locks."""
    return subprocess.Popen([sys.executable, "-c", textwrap.dedent(program), *map(str, args)], stdout=subprocess.PIPE,
                            text=True)
