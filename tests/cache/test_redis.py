"""The failures of a Redis (killed, paused, slow, wiped, full, read-only, refusing), and its own bookkeeping."""

import logging
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

import pytest

from llama_api.cache import GuardedStore, StoreError, open_store, redis_connection
from llama_api.cache.redis import RedisStore
from llama_api.cache.redis_scripts import PREFIX
from llama_api.cache.store import OVERHEAD, Claim, Lease
from tests.cache import KEYS, LONG, got, put
from tests.support.fakes import until
from tests.support.redis_server import RedisServer

CLAIM = Claim(KEYS[0], "epoch", "token")


@contextmanager
def pretending(reply, seconds=0.0):
    """A server that gives ``reply`` to whatever it is sent, after some time; its URL and what it was sent."""
    sent = []

    def serve():
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection, suppress(OSError):
                while request := connection.recv(65536):
                    sent.append(request)
                    time.sleep(seconds)
                    connection.sendall(reply)
                    if not seconds:
                        break

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}", sent
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


@pytest.fixture
def impatient(monkeypatch):
    """Use the time limits of production; to be requested before the store."""
    monkeypatch.setattr(redis_connection, "BUDGET", 0.08)


@pytest.fixture
def client(redis_server):
    with redis_server.client() as client:
        yield client


@pytest.fixture
def store(redis_server):
    store = open_store(redis_server.url, 1000, 1 << 20)
    yield store
    store.close()


def fails(operation, match=None):
    """The operation raises StoreError."""
    with pytest.raises(StoreError, match=match):
        operation()


def not_failing(operation):
    """Whether the operation raises no StoreError."""
    try:
        operation()
        return True
    except StoreError:
        return False


def test_all_its_keys_have_the_prefix_and_an_end(store, client):
    """Every key expires, and foreign keys are not touched."""
    client.set("somebody:else", b"x")
    put(store, KEYS[0], b"x")
    store.touch(KEYS[:1])
    settled = store.claim(KEYS[0], "t", LONG)
    store.claim(KEYS[0], "u", LONG)
    store.settle(settled, b"outcome", LONG)
    store.claim(KEYS[0], "v", LONG)
    store.lease(Lease("host", "t"), 0, 1, LONG)
    store.lease(Lease("host", "u"), 0, 1, LONG)
    store.ping()
    store.clear()
    put(store, KEYS[0], b"x")
    names = client.keys()
    assert all(name.startswith(PREFIX.encode()) and client.pttl(name) > 0 for name in names if name != b"somebody:else")
    assert client.get("somebody:else") == b"x" and {name.split(b":")[2] for name in names if b"llama" in name} == {
        b"epoch", b"entry", b"used", b"sizes", b"claim", b"outcome", b"waits", b"leases", b"queue", b"ping"}


# The server


def test_killed_it_fails_and_started_again_it_works(redis_server, store):
    """Old connections and scripts that it no longer knows are replaced without an error."""
    put(store, KEYS[0], b"x")
    redis_server.kill()
    for operation in (lambda: store.get(KEYS[0]), lambda: store.claim(KEYS[0], "t", LONG), store.size, store.ping):
        fails(operation, "Error")
    redis_server.start()
    assert got(store, KEYS[0]) is None and store.size() == (0, 0)
    assert put(store, KEYS[0], b"x") == 0 and got(store, KEYS[0]) == b"x"


def test_restarted_between_two_operations_nothing_fails(redis_server, store):
    """A connection that has ended is noticed before it is used."""
    put(store, KEYS[0], b"x")
    redis_server.kill()
    redis_server.start()
    assert store.claim(KEYS[0], "t", LONG).token == "t"


def test_wiped_it_starts_empty_and_in_a_new_epoch(store, client):
    """FLUSHALL takes entries, books and claims; SCRIPT FLUSH the scripts. What was begun before does not enter."""
    put(store, KEYS[0], b"x")
    before = store.claim(KEYS[0], "mine", LONG)
    client.flushall()
    client.script_flush()
    assert got(store, KEYS[0]) is None and store.size() == (0, 0)
    assert store.claim(KEYS[0], "yours", LONG).epoch != before.epoch
    assert store.set(KEYS[0], b"late", before.epoch) < 0
    assert put(store, KEYS[1], b"y") == 0 and store.size() == (1, 1 + OVERHEAD)


def test_paused_each_operation_fails_by_its_deadline(impatient, redis_server, store):
    """On an existing connection, and on a new one, which the kernel still accepts."""
    put(store, KEYS[0], b"x")
    epoch = store.get(KEYS[0]).epoch
    redis_server.pause()
    fails(lambda: store.get(KEYS[0]), "[Tt]ime")
    fails(lambda: store.set(KEYS[0], bytes(500_000), epoch), "[Tt]ime")
    redis_server.resume()
    until(lambda: not_failing(store.ping))
    assert got(store, KEYS[0]) in (b"x", bytes(500_000))


def test_paused_and_guarded_nobody_waits_in_turn(impatient, redis_server, store):
    """After the first failure nothing reaches the store until it is back; a crowd waits once, together."""
    errors = []
    guard = GuardedStore(store, errors.append, probe_every=LONG)
    put(guard, KEYS[0], b"x")
    redis_server.pause()
    with ThreadPoolExecutor(100) as pool:
        assert set(pool.map(guard.get, KEYS[:300])) == {None}
    failed = len(errors)
    assert not guard.available and failed <= store.concurrency
    assert {guard.get(key) for key in KEYS} == {None} and guard.claim(KEYS[0], "t", LONG) is None
    assert len(errors) == failed
    redis_server.resume()
    guard.close()


def test_a_slow_server_has_one_deadline_for_all_its_steps(monkeypatch):
    """However many replies an operation needs, and each of them in time, it ends by its one deadline."""
    monkeypatch.setattr(redis_connection, "BUDGET", 0.5)
    with pretending(b"+OK\r\n", seconds=0.3) as (address, sent):
        store = open_store(f"redis://:secret@{address}/2", 10, 10_000)
        fails(lambda: store.get(KEYS[0]), "[Tt]ime")
        until(lambda: len(sent) == 2)
        assert b"AUTH" in sent[0] and b"SELECT" in sent[1]
        store.close()


def test_a_name_is_looked_up_by_the_probe_only(redis_server, monkeypatch):
    """An operation never waits for a name server: until the name is known, it fails at once."""
    asked = []
    known = socket.getaddrinfo
    answer = OSError("no such name")

    def lookup(host, *args, **options):
        asked.append(host)
        if answer:
            raise answer
        return known("127.0.0.1", *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    store = open_store(f"redis://cache.example:{redis_server.port}/0", 10, 10_000)
    assert asked == ["cache.example"]
    fails(lambda: store.get(KEYS[0]), "cache.example")
    fails(store.ping, "no such name")
    assert len(asked) == 2
    answer = None
    store.ping()
    assert put(store, KEYS[0], b"x") == 0 and len(asked) == 3
    store.close()


def test_a_replica_is_refused_until_it_is_a_master(store, client):
    """Writes that it refuses fail; nothing is half done."""
    put(store, KEYS[0], b"x")
    epoch = store.get(KEYS[0]).epoch
    claim = store.claim(KEYS[0], "mine", LONG)
    client.execute_command("REPLICAOF", "127.0.0.1", "1")
    for write in (lambda: store.set(KEYS[1], b"x", epoch), lambda: store.claim(KEYS[1], "t", LONG), store.clear,
                  store.ping, lambda: store.peek(claim, "f"), lambda: store.touch(KEYS[:1])):
        fails(write, "(?i)read.?only")
    client.execute_command("REPLICAOF", "NO", "ONE")
    assert put(store, KEYS[1], b"x") == 0 and got(store, KEYS[0]) == b"x"


def test_without_memory_a_set_is_refused_and_changes_nothing(store, client):
    """Existing entries are still served."""
    put(store, KEYS[0], b"x")
    epoch = store.get(KEYS[0]).epoch
    client.config_set("maxmemory-policy", "noeviction")
    client.config_set("maxmemory", 1)
    for write in (lambda: store.set(KEYS[1], b"y", epoch), lambda: store.set(KEYS[0], b"y", epoch), store.ping,
                  lambda: store.claim(KEYS[0], "t", LONG)):
        fails(write, "OutOfMemory|OOM")
    assert store.size() == (1, 1 + OVERHEAD) and got(store, KEYS[0]) == b"x"
    client.config_set("maxmemory", 0)
    assert put(store, KEYS[1], b"y") == 0 and store.size()[0] == 2


def test_a_password_is_asked_for_used_and_never_told(tmp_path, caplog):
    """Neither the name of the store nor a warning shows it."""
    with RedisServer(tmp_path, "--requirepass", "hush/hush") as server:
        refused = open_store(server.url, 10, 10_000)
        fails(refused.ping, "(?i)auth")
        wrong = open_store(f"redis://:wr0ng@127.0.0.1:{server.port}/1", 10, 10_000)
        caplog.set_level(logging.INFO)
        guard = GuardedStore(wrong, probe_every=LONG)
        assert guard.get(KEYS[0]) is None and "wr0ng" not in caplog.text + wrong.name
        assert f"redis://127.0.0.1:{server.port}/1" in caplog.text
        right = open_store(f"redis://:hush%2Fhush@127.0.0.1:{server.port}/1", 10, 10_000)
        assert put(right, KEYS[0], b"x") == 0 and got(right, KEYS[0]) == b"x"
        for store in (refused, guard, right):
            store.close()


@pytest.mark.parametrize("reply", [
    b"HTTP/1.1 400 Bad Request\r\n\r\n", b"", b":\r\n", b":1\r\n", b"+OK\r\n", b"*3\r\n:1\r\n", b"*1\r\n:1\r\n",
    b"*2\r\n:1\r\n:1\r\n", b"$99\r\nx", b"-LOADING Redis is loading the dataset in memory\r\n", b"-ERR no\r\n",
    b"$x\r\n", b"-BUSY Redis is busy running a script.\r\n", b"\xff\x00\r\n"])
def test_something_else_that_answers_is_an_error(reply):
    """Any reply that the scripts cannot return is a StoreError."""
    with pretending(reply) as (address, _):
        store = open_store(f"redis://{address}/0", 10, 10_000)
        for operation in (lambda: store.get(KEYS[0]), lambda: store.claim(KEYS[0], "t", 1),
                          lambda: store.renew([CLAIM], [], 1)):
            fails(operation)
        store.close()


def test_more_callers_than_places_share_the_connections(store, client):
    """A crowd of 300 opens no more connections than the guard lets in."""
    guard = GuardedStore(store)
    with ThreadPoolExecutor(150) as pool:
        list(pool.map(guard.get, KEYS[:300]))
    assert len(client.client_list()) <= store.concurrency + 1
    guard.close()


# What it does by itself


def test_what_expired_by_itself_leaves_the_books(redis_server):
    """The least recently used expires first, so the next sets find and drop it; it is not counted as evicted."""
    store = RedisStore(redis_server.url, 10, 10_000, entry_ttl=0.5)
    put(store, KEYS[0], b"x")
    put(store, KEYS[1], b"x")
    until(lambda: got(store, KEYS[0]) is None and got(store, KEYS[1]) is None)
    lasting = RedisStore(redis_server.url, 10, 10_000)
    assert put(lasting, KEYS[2], b"x") == 0 and lasting.size() == (1, 1 + OVERHEAD)
    store.close()
    lasting.close()


def test_use_puts_the_expiry_off(store, client):
    """A touch renews what the entry needs, and the epoch, as well as a set does."""
    put(store, KEYS[0], b"x")
    names = client.keys()
    for name in names:
        client.expire(name, 50)
    store.touch([KEYS[0]])
    assert len(names) == 4 and min(client.ttl(name) for name in names) > 90


def test_what_the_server_evicted_is_healed_when_met(store, client):
    """Gone under us: a miss; off the books when set, touched or the oldest."""
    for key in KEYS[:4]:
        put(store, key, b"x")
    for key in KEYS[:3]:
        client.delete(f"{PREFIX}entry:{key}")
    assert got(store, KEYS[1]) is None
    store.touch([KEYS[1]])
    assert store.size() == (3, 3 * (1 + OVERHEAD))
    assert put(store, KEYS[2], b"xx") == 0
    assert store.size() == (2, 3 + 2 * OVERHEAD)


@pytest.mark.parametrize("book", ["used", "sizes"])
def test_a_lost_book_empties_the_cache_and_no_more(store, client, book):
    """The books do not contradict each other for long."""
    for key in KEYS[:5]:
        put(store, key, b"x")
    client.delete(f"{PREFIX}{book}")
    put(store, KEYS[7], b"x")
    assert store.size() == (1, 1 + OVERHEAD)
    assert [key for key in KEYS[:10] if got(store, key)] == [KEYS[7]]


def test_a_purge_leaves_no_values_behind(redis_server, client):
    """All are gone at once; what is set meanwhile stays."""
    store = RedisStore(redis_server.url, 5000, 1 << 20)
    for key in KEYS:
        put(store, key, b"x")
    store.clear()
    assert store.size() == (0, 0) and client.keys(f"{PREFIX}*") == [f"{PREFIX}epoch".encode()]
    put(store, KEYS[0], b"x")
    assert got(store, KEYS[0]) == b"x"
    store.close()


def test_hosts_need_not_agree_on_the_time(redis_server, monkeypatch):
    """No claim or entry depends on a host's clock."""
    here, there = open_store(redis_server.url, 10, 10_000), open_store(redis_server.url, 10, 10_000)
    mine = here.claim(KEYS[0], "mine", LONG)
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert there.claim(KEYS[0], "yours", LONG) == mine
    here.close()
    there.close()
