"""The SQLite store among other processes: killed, locked, stalled, rebooted."""

import functools
import sqlite3
import threading
from contextlib import contextmanager

import pytest

from llama_api.cache import UNDER_WAY, GuardedStore, StoreError, sqlite, sqlite_file
from llama_api.cache.store import OVERHEAD
from tests.cache import KEYS, LONG, got, is_sound, other_connection, put, python
from tests.support.fakes import until


@pytest.fixture
def impatient(monkeypatch):
    """Use the time limits of production."""
    monkeypatch.setattr(sqlite_file, "BUSY", 0.06)
    monkeypatch.setattr(sqlite, "BUDGET", 0.08)


@contextmanager
def write_lock(path):
    """Hold the lock that every write needs."""
    with other_connection(path) as db:
        db.execute("BEGIN IMMEDIATE")
        yield
        db.execute("ROLLBACK")


WRITER = """
    import sys
    from llama_api.cache.sqlite import SqliteStore
    path, start = sys.argv[1], int(sys.argv[2])
    store = SqliteStore(path, 100_000, 1 << 30)
    epoch = store.get("").epoch
    for number in range(start, start + 100_000):
        key = f"{number:064x}"
        store.set(key, key.encode() * 20, epoch)
        store.claim(key, "token", 1)
        print(number, flush=True)
"""


def test_a_kill_loses_no_acknowledged_answer(path, open_sqlite):
    """Killed 8 times while it writes next to a second writer, the store has every answer that it acknowledged."""
    acknowledged = []
    store = open_sqlite(max_entries=100_000, max_bytes=1 << 30)
    for kill in range(8):
        writer = python(WRITER, path, kill * 100_000)
        first = writer.stdout.readline()
        put(store, KEYS[kill], b"mine")
        writer.kill()
        lines = first + writer.stdout.read()
        acknowledged += [int(line) for line in lines.splitlines(keepends=True) if line.endswith("\n")]
        writer.wait()
        writer.stdout.close()
    assert len(acknowledged) >= 8
    for number in acknowledged:
        key = f"{number:064x}"
        assert got(store, key) == (b"mine" if key in KEYS[:8] else key.encode() * 20)
    with other_connection(path) as db:
        entries, = db.execute("SELECT count(*) FROM entries").fetchone()
        total, = db.execute(f"SELECT sum(length(value) + {OVERHEAD}) FROM answers").fetchone()
    assert is_sound(path) and store.size() == (entries, total) and len(acknowledged) <= entries


def test_while_another_holds_the_write_lock_reads_go_on_and_writes_fail_soon(path, open_sqlite, impatient):
    """A write is given up in a moment, and works once the lock is free."""
    store = open_sqlite()
    put(store, KEYS[0], b"there")
    with write_lock(path):
        found = store.get(KEYS[0])
        assert found.value == b"there" and store.size()[0] == 1
        for write in (lambda: store.set(KEYS[1], b"x", found.epoch), lambda: store.claim(KEYS[0], "t", LONG),
                      store.ping, store.clear):
            with pytest.raises(StoreError, match="locked"):
                write()
    put(store, KEYS[1], b"x")
    assert store.size()[0] == 2


def test_guarded_it_is_down_while_locked_and_back_afterwards(path, open_sqlite, impatient):
    """The guard says at once that nothing is known, and finds out by itself when the lock is free."""
    guard = GuardedStore(open_sqlite(), probe_every=0.02)
    assert put(guard, KEYS[0], b"x") == 0 and got(guard, KEYS[0]) == b"x"
    with write_lock(path):
        assert guard.claim(KEYS[0], "mine", LONG) is None and not guard.available
        assert guard.get(KEYS[0]) is None and guard.size() is None
    until(lambda: guard.available)
    assert got(guard, KEYS[0]) == b"x" and guard.claim(KEYS[0], "yours", LONG).token == "yours"
    guard.close()


def test_under_gevent_a_lock_that_another_holds_stops_nobody(path, open_sqlite):
    """The loop turns while an operation waits for the lock; in the loop's own thread it would stand still."""
    put(open_sqlite(), KEYS[0], b"there")
    with write_lock(path):
        program = python("""
            from gevent import monkey; monkey.patch_all()
            import sys
            import gevent
            from llama_api.cache import StoreError, open_store
            store, turns = open_store("sqlite:///" + sys.argv[1], 10, 10_000), [0]
            store.get("k")

            def turn():
                while True:
                    gevent.sleep(0.001)
                    turns[0] += 1

            gevent.spawn(turn)
            try:
                store.claim("k", "t", 1)
            except StoreError:
                print("locked", turns[0] > 5)
        """, path)
        assert program.communicate(timeout=60)[0] == "locked True\n"


def test_a_stalled_disk_costs_an_operation_its_budget_and_the_others_nothing(path, open_sqlite, monkeypatch):
    """While a commit is stuck each operation fails soon; those that had not begun are dropped; the store recovers."""
    stall, stuck = threading.Event(), threading.Event()

    class Connection(sqlite3.Connection):
        def execute(self, statement, *args):
            if statement == "COMMIT" and not stall.is_set():
                stuck.set()
                stall.wait(LONG)
            return super().execute(statement, *args)

    open_sqlite().ping()
    monkeypatch.setattr(sqlite3, "connect", functools.partial(sqlite3.connect, factory=Connection))
    store = open_sqlite()
    epoch = store.get(KEYS[0]).epoch
    monkeypatch.setattr(sqlite, "BUDGET", 0.08)
    with pytest.raises(StoreError, match="longer than 80 ms"):
        store.set(KEYS[0], b"stuck", epoch)
    assert stuck.wait(LONG)
    for operation in (store.size, lambda: store.set(KEYS[1], b"late", epoch), lambda: store.get(KEYS[0]), store.ping):
        with pytest.raises(StoreError, match="longer than 80 ms"):
            operation()
    monkeypatch.setattr(sqlite, "BUDGET", LONG)
    stall.set()
    assert got(store, KEYS[0]) == b"stuck" and got(store, KEYS[1]) is None


def test_claims_of_before_a_reboot_are_over(path, open_sqlite):
    """The monotonic clock starts again: what was claimed at a time still to come does not live."""
    now = [5000.0]
    store = open_sqlite(clock=lambda: now[0])
    before = [store.claim(key, "before" + key, LONG) for key in KEYS[:2]]
    now[0] = 10.0
    assert store.peek(before[0], "follower") is None
    after = store.claim(KEYS[0], "after", LONG)
    assert after.token == "after" and store.peek(after, "follower") == UNDER_WAY
    with other_connection(path) as db:
        assert db.execute("SELECT token FROM claims").fetchall() == [("after",)]


def test_a_purge_leaves_no_answer_in_any_row(path, open_sqlite):
    """Neither an entry nor an outcome: only those who wait for one still find it, and it goes with them."""
    store = open_sqlite()
    put(store, KEYS[0], b"answer")
    claims = [store.claim(key, f"t-{key}", LONG) for key in KEYS[:3]]
    store.peek(claims[0], "follower")
    for claim in claims:
        store.settle(claim, b"answer", LONG)
    store.clear()
    with other_connection(path) as db:
        assert db.execute("SELECT token FROM claims").fetchall() == [(claims[0].token,)]
        assert store.peek(claims[0], "follower") == b"answer"
        for table in ("entries", "answers", "claims", "waits"):
            assert db.execute(f"SELECT * FROM {table}").fetchall() == []


def test_lower_bounds_are_kept_by_the_next_set(open_sqlite):
    """A restart with smaller settings shrinks the store."""
    for key in KEYS[:50]:
        put(open_sqlite(), key, b"x")
    small = open_sqlite(max_entries=3)
    assert put(small, KEYS[60], b"x") == 48
    assert small.size() == (3, 3 * (1 + OVERHEAD)) and got(small, KEYS[49])
