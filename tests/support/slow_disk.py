"""The service with a patient SQLite store on a disk that stalls: commits end while ``<file>.stalled`` is not locked."""

import fcntl
import functools
import sqlite3


class _Connection(sqlite3.Connection):
    def __init__(self, database, *args, **options):
        super().__init__(database, *args, **options)
        self._database = database

    def execute(self, statement, *args):
        if statement == "COMMIT":
            with open(f"{self._database}.stalled", "a") as disk:
                fcntl.flock(disk, fcntl.LOCK_EX)  # which waits natively, as for the disk itself
        return super().execute(statement, *args)


sqlite3.connect = functools.partial(sqlite3.connect, factory=_Connection)

from tests.support.slow_stores import app  # noqa: E402

__all__ = ["app"]
