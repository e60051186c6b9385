"""What only SQLite can suffer: a file that is locked, full, read-only, damaged, deleted or replaced, and kill -9."""

import functools
import os
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
import threading
from contextlib import closing, contextmanager

import pytest

from llama_api.cache import UNDER_WAY, GuardedStore, StoreError, sqlite, sqlite_file
from llama_api.cache.sqlite import SqliteStore
from llama_api.cache.store import OVERHEAD
from tests.cache import KEYS, LONG, got, put
from tests.support.fakes import in_threads, until

VALUES = {key: os.urandom(3000) for key in KEYS[:400]}


@pytest.fixture
def path(sqlite_path):
    return sqlite_path


@pytest.fixture
def opened(path):
    """Open the store as often as wanted."""
    stores = []

    def open_one(max_entries=1000, max_bytes=16 << 20, **options):
        stores.append(SqliteStore(path, max_entries, max_bytes, **options))
        return stores[-1]

    yield open_one
    for store in stores:
        store.close()


@pytest.fixture
def impatient(monkeypatch):
    """Have it bear no more than in service."""
    monkeypatch.setattr(sqlite_file, "BUSY", 0.06)
    monkeypatch.setattr(sqlite, "BUDGET", 0.08)


@contextmanager
def other_connection(path):
    """A connection as another program would have it: it knows nothing of ours."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        yield db


@contextmanager
def write_lock(path):
    """Hold the lock that every write needs."""
    with other_connection(path) as db:
        db.execute("BEGIN IMMEDIATE")
        yield
        db.execute("ROLLBACK")


@pytest.fixture
def connections(monkeypatch):
    """Every connection that is opened to a database, the last one last."""
    made, connect = [], sqlite3.connect

    def connected(*args, **options):
        made.append(connect(*args, **options))
        return made[-1]

    monkeypatch.setattr(sqlite3, "connect", connected)
    return made


def python(program, *args):
    """Run ``program`` in another process: closing the file in this one would release its locks."""
    return subprocess.Popen([sys.executable, "-c", textwrap.dedent(program), *map(str, args)], stdout=subprocess.PIPE,
                            text=True)


def files(path):
    """The names of all files beside the database."""
    return sorted(os.listdir(os.path.dirname(path)))


def checkpoint(path):
    """Bring all that is in the log into the file itself."""
    with other_connection(path) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def is_sound(path):
    """Whether SQLite finds no fault in the file."""
    with other_connection(path) as db:
        return db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


# Other processes

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


def test_a_kill_loses_no_acknowledged_answer(path, opened):
    """Killed 8 times while it writes, beside a second writer, the store has every answer it said it had."""
    acknowledged = []
    store = opened(max_entries=100_000, max_bytes=1 << 30)
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


def test_while_another_holds_the_write_lock_reads_go_on_and_writes_fail_soon(path, opened, impatient):
    """A write is given up in a moment, and works once the lock is free."""
    store = opened()
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


def test_guarded_it_is_down_while_locked_and_back_afterwards(path, opened, impatient):
    """The guard says at once that nothing is known, and finds out by itself when the lock is free."""
    guard = GuardedStore(opened(), probe_every=0.02)
    assert put(guard, KEYS[0], b"x") == 0 and got(guard, KEYS[0]) == b"x"
    with write_lock(path):
        assert guard.claim(KEYS[0], "mine", LONG) is None and not guard.available
        assert guard.get(KEYS[0]) is None and guard.size() is None
    until(lambda: guard.available)
    assert got(guard, KEYS[0]) == b"x" and guard.claim(KEYS[0], "yours", LONG).token == "yours"
    guard.close()


def test_under_gevent_a_lock_that_another_holds_stops_nobody(path, opened):
    """The loop turns while an operation waits for the lock; in the loop's own thread it would stand still."""
    put(opened(), KEYS[0], b"there")
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


def test_a_stalled_disk_costs_an_operation_its_budget_and_the_others_nothing(path, opened, monkeypatch):
    """While a commit is stuck each operation fails soon; what had not begun is not made up for, and all goes on."""
    stall, stuck = threading.Event(), threading.Event()

    class Connection(sqlite3.Connection):
        def execute(self, statement, *args):
            if statement == "COMMIT" and not stall.is_set():
                stuck.set()
                stall.wait(LONG)
            return super().execute(statement, *args)

    opened().ping()
    monkeypatch.setattr(sqlite3, "connect", functools.partial(sqlite3.connect, factory=Connection))
    store = opened()
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


def test_claims_of_before_a_reboot_are_over(path, opened):
    """The monotonic clock starts anew: what was claimed at a time still to come does not live."""
    now = [5000.0]
    store = opened(clock=lambda: now[0])
    before = [store.claim(key, "before" + key, LONG) for key in KEYS[:2]]
    now[0] = 10.0
    assert store.peek(before[0], "follower") is None
    after = store.claim(KEYS[0], "after", LONG)
    assert after.token == "after" and store.peek(after, "follower") == UNDER_WAY
    with other_connection(path) as db:
        assert db.execute("SELECT token FROM claims").fetchall() == [("after",)]


def test_a_purge_leaves_no_answer_in_any_row(path, opened):
    """Neither an entry nor an outcome: only those who wait for one still find it, and it goes with them."""
    store = opened()
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


def test_a_forked_process_has_a_connection_of_its_own(opened):
    """Neither side of a fork can spoil the other's, even if threads are busy in it."""
    store = opened()
    guard = GuardedStore(store)
    put(store, KEYS[0], b"before")
    child = os.fork()
    if child == 0:
        good = guard.available and got(store, KEYS[0]) == b"before" and put(store, KEYS[1], b"child") == 0
        store.close()
        os._exit(0 if good else 1)
    put(store, KEYS[2], b"parent")
    assert os.waitpid(child, 0)[1] == 0
    assert got(store, KEYS[1]) == b"child" and store.size()[0] == 3


# What cannot be written


def test_a_full_disk_refuses_what_is_new_and_serves_what_is_there(opened, connections):
    """It is no fault of the connection: the next set works once there is room."""
    store = opened()
    put(store, KEYS[0], b"there")
    (pages,) = connections[-1].execute("PRAGMA page_count").fetchone()
    connections[-1].execute(f"PRAGMA max_page_count = {pages + 2}")
    with pytest.raises(StoreError, match="full"):
        put(store, KEYS[1], bytes(100_000))
    assert got(store, KEYS[0]) == b"there" and store.size() == (1, 5 + OVERHEAD)
    connections[-1].execute("PRAGMA max_page_count = 100000")
    put(store, KEYS[1], bytes(100_000))
    assert store.size()[0] == 2 and len(connections) == 1


@pytest.mark.parametrize("directory,mode", [(0o555, 0o644), (0o755, 0o444)])
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become nobody")
def test_a_place_that_cannot_be_written_is_an_error_until_it_can(directory, mode):
    """Read-only directory, read-only file: each operation is refused, and works once the rights are there."""
    with tempfile.TemporaryDirectory() as place:  # pytest's own cannot be entered by nobody
        path = os.path.join(place, "answers.db")
        put(SqliteStore(path, 10, 10_000), "other", b"x")
        for name in files(path):
            os.chmod(os.path.join(place, name), mode)
        os.chmod(place, directory)
        assert refused_to_nobody(path) == 3
        os.chmod(place, 0o777)
        for name in files(path):
            os.chmod(os.path.join(place, name), 0o666)
        assert refused_to_nobody(path) == 0


def refused_to_nobody(path):
    """How many of three operations raise StoreError in a process without privileges."""
    child = os.fork()
    if child == 0:
        refused = 0
        try:
            os.setuid(65534)
            store = SqliteStore(path, 10, 10_000)
            for operation in (lambda: put(store, "k", b"v"), lambda: store.claim("k", "t", 1), store.ping):
                try:
                    operation()
                except StoreError:
                    refused += 1
            store.close()
        except BaseException:
            refused = 99
        os._exit(refused)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_connection_that_became_read_only_is_made_anew(opened, connections):
    """The operation that met it fails, the next one does not."""
    store = opened()
    put(store, KEYS[0], b"x")
    connections[-1].execute("PRAGMA query_only = 1")
    with pytest.raises(StoreError, match="readonly"):
        put(store, KEYS[1], b"x")
    put(store, KEYS[1], b"x")
    assert len(connections) == 2


def test_a_directory_in_its_place_is_an_error_until_it_has_gone(path, opened):
    """Whatever stands where the file should be is left alone."""
    store = opened()
    os.mkdir(path)
    for operation in (store.size, store.ping, lambda: store.get(KEYS[0]), lambda: store.set(KEYS[0], b"x", "")):
        with pytest.raises(StoreError):
            operation()
    os.rmdir(path)
    put(store, KEYS[0], b"x")
    assert got(store, KEYS[0]) == b"x"


# Damage

DAMAGE = {
    "emptied": "os.truncate(path, 0)",
    "cut in half": "os.truncate(path, os.path.getsize(path) // 2)",
    "another text": "open(path, 'w').write('no database at all')",
    "noise all over": "open(path, 'r+b').write(os.urandom(os.path.getsize(path)))",
    "noise in the middle": "f = open(path, 'r+b'); f.seek(os.path.getsize(path) // 2); f.write(os.urandom(9000))",
    "replaced by noise": "open(path + '+', 'wb').write(os.urandom(9000)); os.rename(path + '+', path)",
}


def damage(path, how):
    """Spoil the file."""
    program = python(f"import os, sys; path = sys.argv[1]; {DAMAGE[how]}", path)
    program.communicate()
    assert program.returncode == 0


@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_file_is_set_aside_and_never_misread(path, opened, how, restarted):
    """Whatever is written over it, no answer comes back changed, and soon all works again, for every view."""
    store, other = opened(), opened()
    for key, value in VALUES.items():
        put(store, key, value)
    other.get(KEYS[0])
    if restarted:
        store.close()
        other.close()
    checkpoint(path)
    damage(path, how)
    errors = 0
    for key, value in [*VALUES.items()] * 2:
        for view in (store, other):
            try:
                assert got(view, key) in (value, None)
                put(view, f"new {key}", value)
            except StoreError:
                errors += 1
    assert errors <= 4
    last = [*VALUES][-1]
    assert got(store, f"new {last}") == got(other, f"new {last}") == VALUES[last]
    aside = [name for name in files(path) if "corrupt" in name and not name.endswith(("-wal", "-shm"))]
    assert aside == ([] if how == "emptied" and restarted else ["answers.db.corrupt-1"])
    assert is_sound(path)


@pytest.mark.parametrize("loss", ["DELETE FROM totals", "DELETE FROM entries", "UPDATE totals SET bytes = 1 << 40"])
def test_tables_that_contradict_each_other_are_noticed(path, opened, loss):
    """Pages of different times may each be sound: neither a loop without end nor an error for ever comes of it."""
    store = opened()
    for key in KEYS[:5]:
        put(store, key, b"x")
    with other_connection(path) as db:
        db.execute(loss)
    failed = 0
    for key in KEYS[5:15]:
        try:
            put(store, key, b"x")
            store.ping()
        except StoreError:
            failed += 1
    assert failed == 1
    assert put(store, KEYS[20], b"x") == 0 and got(store, KEYS[20]) == b"x"


def test_a_fresh_file_is_a_new_epoch(path, opened):
    """What was begun when the old one was there does not enter."""
    store = opened()
    before = store.get(KEYS[0]).epoch
    for end in ("", "-wal", "-shm"):
        os.unlink(path + end)
    assert store.set(KEYS[0], b"late", before) < 0 and got(store, KEYS[0]) is None


def test_only_a_few_damaged_files_are_kept(path, opened):
    """The last of them is overwritten, so that they never fill the disk."""
    store = opened()
    for _ in range(8):
        put(store, KEYS[0], b"x")
        os.truncate(path, 0)
        with pytest.raises(StoreError):
            store.get(KEYS[0])
    assert got(store, KEYS[0]) is None
    kept = [name for name in files(path) if name[-9:-1] == "corrupt-"]
    assert kept == [f"answers.db.corrupt-{n}" for n in range(1, 6)]


@pytest.mark.parametrize("ends", [("",), ("", "-wal", "-shm"), ("", "-shm")])
def test_a_deleted_file_is_noticed_by_every_view(path, opened, ends):
    """Each goes on in the same fresh file at its next operation, claims and all."""
    views = [opened() for _ in range(3)]
    for view in views:
        put(view, KEYS[0], b"old")
    for end in ends:
        os.unlink(path + end)
    assert got(views[0], KEYS[0]) is None
    put(views[1], KEYS[1], b"new")
    mine = views[2].claim(KEYS[1], "mine", LONG)
    assert [got(view, KEYS[1]) for view in views] == [b"new"] * 3
    assert mine.token == "mine" and views[0].claim(KEYS[1], "yours", LONG) == mine
    assert {view.size() for view in views} == {(1, 3 + OVERHEAD)}


def test_many_workers_recover_at_the_same_time(path, opened):
    """Eight meet the same damage at once: one file is set aside, and they share one fresh file."""
    views = [opened() for _ in range(8)]
    for view in views:
        put(view, KEYS[0], bytes(5000))
    checkpoint(path)
    damage(path, "noise all over")

    def recover(number):
        def recovered():
            try:
                return put(views[number], KEYS[number], b"new") == 0
            except StoreError:
                return False
        return until(recovered)

    assert in_threads(8, recover) == [True] * 8
    assert {view.size() for view in views} == {(8, 8 * (3 + OVERHEAD))}
    assert len([name for name in files(path) if name.endswith("corrupt-1")]) == 1
    assert not [name for name in files(path) if "corrupt-2" in name]


# Layouts


@pytest.mark.parametrize("script", [
    "CREATE TABLE entries (key TEXT, value BLOB); PRAGMA user_version = 2;",
    "CREATE TABLE entries (key TEXT, value BLOB); PRAGMA application_id = 0x6C6C6170; PRAGMA user_version = 1;",
])
def test_a_foreign_or_older_file_is_set_aside_whole(path, opened, script):
    """It is kept, as it is not ours to throw away, and a fresh one takes its place."""
    with other_connection(path) as db:
        db.executescript(script + "INSERT INTO entries VALUES ('k', x'80049529');")
    store = opened()
    assert got(store, "k") is None and put(store, "k", b"v") == 0
    with other_connection(path + ".foreign-1") as db:
        assert db.execute("SELECT count(*) FROM entries").fetchone() == (1,)


def test_a_newer_file_is_left_alone(path, opened):
    """Else an old and a new worker would take it in turns to throw each other's answers away."""
    first = opened()
    put(first, KEYS[0], b"x")
    first.close()
    with other_connection(path) as db:
        (version,) = db.execute("PRAGMA user_version").fetchone()
        db.execute(f"PRAGMA user_version = {version + 1}")
    for _ in range(2):
        with pytest.raises(StoreError, match="newer version"):
            opened().get(KEYS[0])
    assert [name for name in files(path) if "foreign" in name or "corrupt" in name] == []


def test_lower_bounds_are_kept_by_the_next_set(opened):
    """A restart with smaller settings shrinks the store."""
    for key in KEYS[:50]:
        put(opened(), key, b"x")
    small = opened(max_entries=3)
    assert put(small, KEYS[60], b"x") == 48
    assert small.size() == (3, 3 * (1 + OVERHEAD)) and got(small, KEYS[49])
