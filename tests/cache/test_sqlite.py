"""What only SQLite can suffer: a file that is locked, full, read-only, damaged, deleted or replaced, and kill -9."""

import os
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from llama_api.cache.guarded import OVERHEAD, Claim, GuardedStore, SqliteStore, StoreError
from tests.support.fakes import until

KEYS = [f"{n:064x}" for n in range(400)]
LONG = 30.0


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "answers.db")


@pytest.fixture
def opened(path):
    stores = []

    def open_one(max_entries=1000, max_bytes=16 << 20, **options):
        stores.append(SqliteStore(path, max_entries, max_bytes, **options))
        return stores[-1]

    yield open_one
    for store in stores:
        store.close()


def python(program, *args):
    """Run ``program`` in another process: closing the file in this one would release its locks."""
    return subprocess.Popen([sys.executable, "-c", program, *map(str, args)], stdout=subprocess.PIPE, text=True)


def files(path):
    return sorted(os.listdir(os.path.dirname(path)))


WRITER = """
import sys
from llama_api.cache.sqlite import SqliteStore
path, start = sys.argv[1], int(sys.argv[2])
store = SqliteStore(path, 100_000, 1 << 30)
for number in range(start, start + 100_000):
    key = f"{number:064x}"
    store.set(key, key.encode() * 20)
    store.claim(key, "token", 1)
    print(number, flush=True)
"""


def written(store, key):
    """Whether the store took the key: beside a busy writer it may be locked for longer than it waits."""
    try:
        store.set(key, b"mine")
    except StoreError:
        return False
    return True


def test_a_kill_loses_no_acknowledged_answer(path, opened):
    """Killed 8 times while it writes, beside a second writer, the store has every answer it said it had."""
    acknowledged = []
    other = opened(max_entries=100_000, max_bytes=1 << 30)
    for kill in range(8):
        writer = python(WRITER, path, kill * 100_000)
        first = writer.stdout.readline()
        until(lambda: written(other, KEYS[kill]))
        time.sleep(kill * 0.002)
        writer.kill()
        lines = first + writer.stdout.read()
        acknowledged += [int(line) for line in lines.splitlines(keepends=True) if line.endswith("\n")]
        writer.wait()
        writer.stdout.close()
    store = opened(max_entries=100_000, max_bytes=1 << 30)
    assert len(acknowledged) > 8
    for number in acknowledged:
        key = f"{number:064x}"
        assert store.get(key) == (b"mine" if key in KEYS[:8] else key.encode() * 20)
    with sqlite3.connect(path) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        entries, = db.execute("SELECT count(*) FROM entries").fetchone()
        total, = db.execute(f"SELECT sum(length(value) + {OVERHEAD}) FROM answers").fetchone()
    db.close()
    assert store.size() == (entries, total) and len(acknowledged) <= entries


def test_while_another_holds_the_write_lock_reads_go_on_and_writes_fail_soon(path, opened):
    store = opened()
    store.set(KEYS[0], b"there")
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    assert store.get(KEYS[0]) == b"there" and store.size()[0] == 1
    for write in (lambda: store.set(KEYS[1], b"x"), lambda: store.claim(KEYS[0], "t", LONG), store.ping, store.clear):
        with pytest.raises(StoreError, match="locked"):
            write()
    other.execute("ROLLBACK")
    other.close()
    store.set(KEYS[1], b"x")
    assert store.size()[0] == 2


def test_a_full_disk_refuses_what_is_new_and_serves_what_is_there(opened):
    store = opened()
    store.set(KEYS[0], b"there")
    (pages,) = store._file.db.execute("PRAGMA page_count").fetchone()
    store._file.db.execute(f"PRAGMA max_page_count = {pages + 2}")
    with pytest.raises(StoreError, match="full"):
        store.set(KEYS[1], bytes(100_000))
    assert store.get(KEYS[0]) == b"there" and store.size() == (1, 5 + OVERHEAD)
    store._file.db.execute("PRAGMA max_page_count = 100000")
    store.set(KEYS[1], bytes(100_000))
    assert store.size()[0] == 2


@pytest.mark.parametrize("directory,mode", [(0o555, 0o644), (0o755, 0o444)])
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become nobody")
def test_a_place_that_cannot_be_written_is_an_error_until_it_can(directory, mode):
    """Read-only directory, read-only file: each operation is refused, and works once the rights are there."""
    with tempfile.TemporaryDirectory() as place:  # pytest's own cannot be entered by nobody
        path = os.path.join(place, "answers.db")
        SqliteStore(path, 10, 10_000).set("other", b"x")
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
            for operation in (lambda: store.set("k", b"v"), lambda: store.claim("k", "t", 1), store.ping):
                try:
                    operation()
                except StoreError:
                    refused += 1
            store.close()
        except BaseException:
            refused = 99
        os._exit(refused)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_connection_that_became_read_only_is_made_anew(opened):
    store = opened()
    store.set(KEYS[0], b"x")
    store._file.db.execute("PRAGMA query_only = 1")
    with pytest.raises(StoreError, match="readonly"):
        store.set(KEYS[1], b"x")
    store.set(KEYS[1], b"x")


def test_a_directory_in_its_place_is_an_error_until_it_has_gone(path, opened):
    store = opened()
    os.mkdir(path)
    for operation in (store.size, store.ping, lambda: store.get(KEYS[0]), lambda: store.set(KEYS[0], b"x")):
        with pytest.raises(StoreError):
            operation()
    os.rmdir(path)
    store.set(KEYS[0], b"x")
    assert store.get(KEYS[0]) == b"x"


DAMAGE = {
    "emptied": "os.truncate(path, 0)",
    "cut in half": "os.truncate(path, os.path.getsize(path) // 2)",
    "another text": "open(path, 'w').write('no database at all')",
    "noise all over": "open(path, 'r+b').write(os.urandom(os.path.getsize(path)))",
    "noise in the middle": "f = open(path, 'r+b'); f.seek(os.path.getsize(path) // 2); f.write(os.urandom(9000))",
    "replaced by noise": "open(path + '+', 'wb').write(os.urandom(9000)); os.rename(path + '+', path)",
}


@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_file_is_set_aside_and_never_misread(path, opened, how, restarted):
    """Whatever is written over it, no answer comes back changed, and soon all works again, for every view."""
    store, other = opened(), opened()
    values = {key: os.urandom(3000) for key in KEYS}
    for key, value in values.items():
        store.set(key, value)
    other.get(KEYS[0])
    store._file.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    if restarted:
        store.close()
        other.close()
    program = python(f"import os, sys; path = sys.argv[1]; {DAMAGE[how]}", path)
    assert program.communicate() and program.returncode == 0
    errors = 0
    for key, value in [*values.items()] * 2:
        for view in (store, other):
            try:
                assert view.get(key) in (value, None)
                view.set(f"new {key}", value)
            except StoreError:
                errors += 1
    assert errors <= 4
    assert store.get(f"new {KEYS[-1]}") == other.get(f"new {KEYS[-1]}") == values[KEYS[-1]]
    aside = [name for name in files(path) if "corrupt" in name and not name.endswith(("-wal", "-shm"))]
    assert aside == ([] if how == "emptied" and restarted else ["answers.db.corrupt-1"])
    with sqlite3.connect(path) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    db.close()


@pytest.mark.parametrize("loss", ["DELETE FROM totals", "DELETE FROM entries", "UPDATE totals SET bytes = 1 << 40"])
def test_tables_that_contradict_each_other_are_noticed(path, opened, loss):
    """Pages of different times may each be sound: neither a loop without end nor an error for ever comes of it."""
    store = opened()
    for key in KEYS[:5]:
        store.set(key, b"x")
    store._file.db.execute(loss)
    failed = 0
    for key in KEYS[5:15]:
        try:
            store.set(key, b"x")
            store.ping()
        except StoreError:
            failed += 1
    assert failed == 1
    assert store.set(KEYS[20], b"x") == 0 and store.get(KEYS[20]) == b"x"


def test_only_a_few_damaged_files_are_kept(path, opened):
    store = opened()
    for _ in range(8):
        store.set(KEYS[0], b"x")
        os.truncate(path, 0)
        with pytest.raises(StoreError):
            store.get(KEYS[0])
    assert store.get(KEYS[0]) is None
    kept = [name for name in files(path) if name[-9:-1] == "corrupt-"]
    assert kept == [f"answers.db.corrupt-{n}" for n in range(1, 6)]


@pytest.mark.parametrize("ends", [("",), ("", "-wal", "-shm"), ("", "-shm")])
def test_a_deleted_file_is_noticed_by_every_view(path, opened, ends):
    """Each goes on in the same fresh file at its next operation, claims and all."""
    views = [opened() for _ in range(3)]
    for view in views:
        view.set(KEYS[0], b"old")
    for end in ends:
        os.unlink(path + end)
    assert views[0].get(KEYS[0]) is None
    views[1].set(KEYS[1], b"new")
    assert views[2].claim(KEYS[1], "mine", LONG) is None
    assert [view.get(KEYS[1]) for view in views] == [b"new"] * 3
    assert views[0].claim(KEYS[1], "yours", LONG) == Claim("mine", None)
    assert {view.size() for view in views} == {(1, 3 + OVERHEAD)}


def test_many_workers_recover_at_the_same_time(path, opened):
    """Eight meet the same damage at once: one file is set aside, and they share one fresh file."""
    views = [opened() for _ in range(8)]
    for view in views:
        view.set(KEYS[0], bytes(5000))
    views[0]._file.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    program = python(f"import os, sys; path = sys.argv[1]; {DAMAGE['noise all over']}", path)
    assert program.communicate() and program.returncode == 0
    start = threading.Barrier(8)

    def recover(number):
        start.wait()
        for _ in range(100):
            try:
                views[number].set(KEYS[number], b"new")
                return True
            except StoreError:
                time.sleep(0.01)

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(recover, range(8))) == [True] * 8
    assert {view.size() for view in views} == {(8, 8 * (3 + OVERHEAD))}
    assert len([name for name in files(path) if name.endswith("corrupt-1")]) == 1
    assert not [name for name in files(path) if "corrupt-2" in name]


@pytest.mark.parametrize("script", [
    "CREATE TABLE entries (key TEXT, value BLOB); PRAGMA user_version = 1;",
    "CREATE TABLE entries (key TEXT, value BLOB); PRAGMA application_id = 0x6C6C6170; PRAGMA user_version = 0;",
])
def test_a_foreign_or_older_file_is_set_aside_whole(path, opened, script):
    db = sqlite3.connect(path)
    db.executescript(script + "INSERT INTO entries VALUES ('k', x'80049529');")
    db.close()
    store = opened()
    assert store.get("k") is None and store.set("k", b"v") == 0
    db = sqlite3.connect(path + ".foreign-1")
    assert db.execute("SELECT count(*) FROM entries").fetchone() == (1,)
    db.close()


def test_a_newer_file_is_left_alone(path, opened):
    """Else an old and a new worker would take it in turns to throw each other's answers away."""
    first = opened()
    first.set(KEYS[0], b"x")
    first._file.db.execute("PRAGMA user_version = 2")
    first.close()
    for _ in range(2):
        with pytest.raises(StoreError, match="newer version"):
            opened().get(KEYS[0])
    assert [name for name in files(path) if "foreign" in name or "corrupt" in name] == []


def test_lower_bounds_are_kept_by_the_next_set(opened):
    """A restart with smaller settings shrinks the store."""
    for key in KEYS[:50]:
        opened().set(key, b"x")
    small = opened(max_entries=3)
    assert small.set(KEYS[60], b"x") == 48
    assert small.size() == (3, 3 * (1 + OVERHEAD)) and small.get(KEYS[49])


def test_claims_of_before_a_reboot_are_over(opened):
    """The monotonic clock starts anew: what was claimed at a time still to come does not live."""
    now = [5000.0]
    store = opened(clock=lambda: now[0])
    store.claim(KEYS[0], "before", LONG)
    store.claim(KEYS[1], "before", LONG)
    now[0] = 10.0
    assert store.peek(KEYS[0], "before") is None
    assert store.claim(KEYS[0], "after", LONG) is None
    assert store._file.db.execute("SELECT key FROM claims").fetchall() == [(KEYS[0],)]


def test_a_forked_process_has_a_connection_of_its_own(opened):
    """Neither side of a fork can spoil the other's, even if threads are busy in it."""
    store = opened()
    guard = GuardedStore(store)
    store.set(KEYS[0], b"before")
    child = os.fork()
    if child == 0:
        good = guard.available and store.get(KEYS[0]) == b"before" and store.set(KEYS[1], b"child") == 0
        store.close()
        os._exit(0 if good else 1)
    store.set(KEYS[2], b"parent")
    assert os.waitpid(child, 0)[1] == 0
    assert store.get(KEYS[1]) == b"child" and store.size()[0] == 3


def test_guarded_it_is_down_while_locked_and_back_afterwards(path, opened):
    guard = GuardedStore(opened(), probe_every=0.02)
    assert guard.set(KEYS[0], b"x") == 0 and guard.get(KEYS[0]) == b"x"
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    assert guard.claim(KEYS[0], "mine", LONG) is None and not guard.available
    assert guard.get(KEYS[0]) is None and guard.size() is None
    other.execute("ROLLBACK")
    other.close()
    end = time.monotonic() + 10
    while not guard.available:
        assert time.monotonic() < end
        time.sleep(0.01)
    assert guard.get(KEYS[0]) == b"x" and guard.claim(KEYS[0], "yours", LONG) is None
    guard.close()
