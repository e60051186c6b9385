"""The stores of the chaos run, what is done to them, and what must not be left in them."""

import os
import sqlite3
import time
from contextlib import ExitStack, contextmanager, suppress

from tests.support.redis_server import RedisServer

TROUBLE_SECONDS = 1.5
KEPT_SECONDS = 8.0  # after a trouble: what was lost with the store ends, and a dead process's part expires


class Store:
    """The base of all stores; their deeds are methods whose names begin with ``do_``."""

    url, shared, port = "memory://", False, None

    def __init__(self):
        self._troubles = []  # since and until

    def __enter__(self):
        return self

    def __exit__(self, *details):
        pass

    @contextmanager
    def trouble(self):
        """Note that the store is not what it should be inside the block."""
        at = len(self._troubles)
        since = time.monotonic()
        self._troubles.append((since, float("inf")))
        try:
            yield
        finally:
            self._troubles[at] = since, time.monotonic()

    def in_trouble(self, since, until=float("inf")):
        """Whether there was a trouble between the two times."""
        return any(begin <= until and end >= since for begin, end in self._troubles)

    def upset(self, at):
        """Whether a trouble may still have had an effect at that time."""
        return self.in_trouble(at - KEPT_SECONDS, at)

    def heal(self):
        """Be well again."""

    def under_way(self):
        """Its entries for generations under way, {} if there are none."""
        return {}


class Memory(Store):
    """None: each worker has its own cache."""

    def __init__(self, directory):
        super().__init__()


class Redis(Store):
    """A Redis that dies, hangs, and loses all."""

    shared = True

    def __init__(self, directory):
        super().__init__()
        self._server = RedisServer(directory)
        self.url, self.port = self._server.url, self._server.port

    def __enter__(self):
        self._server.start()
        return self

    def __exit__(self, *details):
        self._server.kill()

    def do_kill_the_store(self, pause):
        with self.trouble():
            self._server.kill()
            pause(TROUBLE_SECONDS)
            self._server.start()

    def do_stop_the_store(self, pause):
        with self.trouble():
            self._server.pause()
            pause(TROUBLE_SECONDS)
            self._server.resume()

    def do_empty_the_store(self, pause):
        with self.trouble(), self._server.client() as client:
            client.flushall()

    def heal(self):
        with self.trouble():
            if self._server.process is None:
                self._server.start()
            self._server.resume()

    def under_way(self):
        with self._server.client(decode_responses=True) as client:
            kinds = [key.split(":")[2] for key in client.scan_iter("llama_api:*", count=1000)]
        return {kind: kinds.count(kind) for kind in ("claim", "leases", "queue") if kind in kinds}


class Sqlite(Store):
    """A file that is locked, deleted and overwritten."""

    shared = True

    def __init__(self, directory):
        super().__init__()
        self._path = directory / "answers.db"
        self.url = f"sqlite:///{self._path}"

    def do_lock_the_store(self, pause):
        with self.trouble(), ExitStack() as stack:
            db = sqlite3.connect(self._path, timeout=5, isolation_level=None)
            stack.callback(db.close)
            db.execute("BEGIN EXCLUSIVE")
            pause(TROUBLE_SECONDS)

    def do_delete_the_store(self, pause):
        with self.trouble():
            self._path.unlink(missing_ok=True)

    def do_damage_the_store(self, pause):
        with self.trouble(), suppress(FileNotFoundError), open(self._path, "r+b") as file:
            file.seek(os.path.getsize(self._path) // 3)
            file.write(b"\xa5damage\x5a" * 1024)

    def under_way(self):
        db = sqlite3.connect(self._path, timeout=5)
        try:
            count, = db.execute("SELECT count(*) FROM claims WHERE outcome IS NULL AND since + ttl > ?",
                                (time.monotonic(),)).fetchone()
        finally:
            db.close()
        return {"claims": count} if count else {}
