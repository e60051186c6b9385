"""The failures of a SQLite file: full, read-only, damaged, deleted, replaced, of another layout."""

import os
import sqlite3
import tempfile

import pytest

from llama_api.cache import StoreError
from llama_api.cache.sqlite import SqliteStore
from llama_api.cache.store import OVERHEAD
from tests.cache import KEYS, LONG, got, is_sound, other_connection, put, python
from tests.support.fakes import in_threads, until

VALUES = {key: os.urandom(3000) for key in KEYS[:400]}


@pytest.fixture
def connections(monkeypatch):
    """Every connection that is opened to a database, the last one last."""
    made, connect = [], sqlite3.connect

    def connected(*args, **options):
        made.append(connect(*args, **options))
        return made[-1]

    monkeypatch.setattr(sqlite3, "connect", connected)
    return made


def files(path):
    """The names of all files in the database's directory."""
    return sorted(os.listdir(os.path.dirname(path)))


def checkpoint(path):
    """Bring all that is in the log into the file itself."""
    with other_connection(path) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")


# What cannot be written


def test_a_full_disk_refuses_what_is_new_and_serves_what_is_there(open_sqlite, connections):
    """It is no fault of the connection: the next set works once there is room."""
    store = open_sqlite()
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
    with tempfile.TemporaryDirectory() as place:  # the user nobody cannot enter pytest's own
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
    """The number of three operations that raise StoreError in a process without privileges."""
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


def test_a_connection_that_became_read_only_is_made_anew(open_sqlite, connections):
    """The operation that met it fails, the next one does not."""
    store = open_sqlite()
    put(store, KEYS[0], b"x")
    connections[-1].execute("PRAGMA query_only = 1")
    with pytest.raises(StoreError, match="readonly"):
        put(store, KEYS[1], b"x")
    put(store, KEYS[1], b"x")
    assert len(connections) == 2


def test_a_directory_in_its_place_is_an_error_until_it_has_gone(path, open_sqlite):
    """Anything else in place of the file is left alone."""
    store = open_sqlite()
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
def test_a_damaged_file_is_set_aside_and_never_misread(path, open_sqlite, how, restarted):
    """Whatever overwrites it, no answer comes back changed, and soon it works again, for every view."""
    store, other = open_sqlite(), open_sqlite()
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
def test_tables_that_contradict_each_other_are_noticed(path, open_sqlite, loss):
    """Pages of different times may each be sound: neither a loop without end nor an error forever comes of it."""
    store = open_sqlite()
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


def test_a_fresh_file_is_a_new_epoch(path, open_sqlite):
    """A value begun with the old one is not stored in the new one."""
    store = open_sqlite()
    before = store.get(KEYS[0]).epoch
    for end in ("", "-wal", "-shm"):
        os.unlink(path + end)
    assert store.set(KEYS[0], b"late", before) < 0 and got(store, KEYS[0]) is None


def test_only_a_few_damaged_files_are_kept(path, open_sqlite):
    """The last of them is overwritten, so that they never fill the disk."""
    store = open_sqlite()
    for _ in range(8):
        put(store, KEYS[0], b"x")
        os.truncate(path, 0)
        with pytest.raises(StoreError):
            store.get(KEYS[0])
    assert got(store, KEYS[0]) is None
    kept = [name for name in files(path) if name[-9:-1] == "corrupt-"]
    assert kept == [f"answers.db.corrupt-{n}" for n in range(1, 6)]


@pytest.mark.parametrize("ends", [("",), ("", "-wal", "-shm"), ("", "-shm")])
def test_a_deleted_file_is_noticed_by_every_view(path, open_sqlite, ends):
    """Each continues in the same fresh file at its next operation, claims included."""
    views = [open_sqlite() for _ in range(3)]
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


def test_many_workers_recover_at_the_same_time(path, open_sqlite):
    """Eight meet the same damage at once: one file is set aside, and they share one fresh file."""
    views = [open_sqlite() for _ in range(8)]
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
def test_a_foreign_or_older_file_is_set_aside_whole(path, open_sqlite, script):
    """It is kept, as it is not ours to throw away, and a fresh one takes its place."""
    with other_connection(path) as db:
        db.executescript(script + "INSERT INTO entries VALUES ('k', x'80049529');")
    store = open_sqlite()
    assert got(store, "k") is None and put(store, "k", b"v") == 0
    with other_connection(path + ".foreign-1") as db:
        assert db.execute("SELECT count(*) FROM entries").fetchone() == (1,)


def test_a_newer_file_is_left_alone(path, open_sqlite):
    """Otherwise an old and a new worker would delete each other's answers in turn."""
    first = open_sqlite()
    put(first, KEYS[0], b"x")
    first.close()
    with other_connection(path) as db:
        (version,) = db.execute("PRAGMA user_version").fetchone()
        db.execute(f"PRAGMA user_version = {version + 1}")
    for _ in range(2):
        with pytest.raises(StoreError, match="newer version"):
            open_sqlite().get(KEYS[0])
    assert [name for name in files(path) if "foreign" in name or "corrupt" in name] == []
