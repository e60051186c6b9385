"""What only a Redis can suffer: killed, paused, slow, wiped, full, read-only, refusing; and what it does by itself."""

import logging
import select
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

import pytest

from llama_api.cache import redis as redis_store
from llama_api.cache.guarded import OVERHEAD, Claim, GuardedStore, RedisStore, StoreError, open_store
from tests.support.fakes import until
from tests.support.redis_server import RedisServer

KEYS = [f"{n:064x}" for n in range(1500)]
LONG = 30.0


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
def server(tmp_path):
    with RedisServer(tmp_path) as server:
        yield server


@pytest.fixture
def client(server):
    with server.client() as client:
        yield client


@pytest.fixture
def store(server):
    store = open_store(server.url, 1000, 1 << 20)
    yield store
    store.close()


def fails(operation, match=None):
    with pytest.raises(StoreError, match=match):
        operation()


def test_all_its_keys_have_the_prefix_and_an_end(store, client):
    """Nothing is left in the server for ever, and nobody else's keys are touched."""
    client.set("somebody:else", b"x")
    store.set(KEYS[0], b"x")
    store.touch(KEYS[:1])
    store.claim(KEYS[0], "t", LONG)
    store.claim(KEYS[0], "u", LONG)
    store.ping()
    store.clear()
    store.set(KEYS[0], b"x")
    names = client.keys()
    assert all(name.startswith(b"llama_api:1:") and client.pttl(name) > 0 for name in names if name != b"somebody:else")
    assert client.get("somebody:else") == b"x" and len(names) == 7


def test_killed_it_fails_and_started_again_it_works(server, store):
    """The connections of before, and the scripts it no longer knows, are made good without an error."""
    store.set(KEYS[0], b"x")
    server.kill()
    for operation in (lambda: store.get(KEYS[0]), lambda: store.claim(KEYS[0], "t", LONG), store.size, store.ping):
        fails(operation, "Error")
    server.start()
    assert store.get(KEYS[0]) is None and store.size() == (0, 0)
    assert store.set(KEYS[0], b"x") == 0 and store.get(KEYS[0]) == b"x"


def test_restarted_between_two_operations_nothing_fails(server, store):
    store.set(KEYS[0], b"x")
    server.kill()
    server.start()
    assert store.claim(KEYS[0], "t", LONG) is None


def test_wiped_it_starts_empty(store, client):
    """FLUSHALL takes entries, books and claims; SCRIPT FLUSH the scripts."""
    store.set(KEYS[0], b"x")
    store.claim(KEYS[0], "mine", LONG)
    client.flushall()
    client.script_flush()
    assert store.get(KEYS[0]) is None and store.size() == (0, 0)
    assert not store.renew(KEYS[0], "mine", LONG) and store.claim(KEYS[0], "yours", LONG) is None
    assert store.set(KEYS[1], b"y") == 0 and store.size() == (1, 1 + OVERHEAD)


def test_paused_each_operation_fails_by_its_deadline(server, store):
    """On a connection of before, and on a new one, which the kernel still accepts."""
    store.set(KEYS[0], b"x")
    server.pause()
    started = time.monotonic()
    fails(lambda: store.get(KEYS[0]), "[Tt]ime")
    fails(lambda: store.set(KEYS[0], bytes(500_000)), "[Tt]ime")
    assert time.monotonic() - started < 2  # the library's own patience would be 10
    server.resume()
    until(lambda: not_failing(store.ping))
    assert store.get(KEYS[0]) in (b"x", bytes(500_000))


def not_failing(operation):
    try:
        operation()
        return True
    except StoreError:
        return False


def test_paused_and_guarded_the_socket_is_left_alone(server, store, monkeypatch):
    """After the first failure nothing reaches the store until it is back; a crowd waits once, not in turn."""
    guard = GuardedStore(store, probe_every=0.05)
    guard.set(KEYS[0], b"x")
    server.pause()
    reached = []
    run = store._run
    monkeypatch.setattr(store, "_run", lambda *args: (reached.append(args[0]), run(*args))[1])
    with ThreadPoolExecutor(100) as pool:
        assert set(pool.map(guard.get, KEYS[:300])) == {None}
    assert not guard.available and reached.count("get") <= store.concurrency
    before = reached.count("get")
    assert {guard.get(key) for key in KEYS} == {None} and guard.claim(KEYS[0], "t", LONG) is None
    assert reached.count("get") == before and "claim" not in reached
    server.resume()
    until(lambda: guard.available)
    assert guard.get(KEYS[0]) == b"x"
    guard.close()


def test_a_slow_server_has_one_deadline_for_all_its_steps(monkeypatch):
    """However many replies an operation needs, and each of them in time, it ends by its one deadline."""
    monkeypatch.setattr(redis_store, "BUDGET", 0.5)
    with pretending(b"+OK\r\n", seconds=0.3) as (address, sent):
        store = open_store(f"redis://:secret@{address}/2", 10, 10_000)
        fails(lambda: store.get(KEYS[0]), "[Tt]ime")
        until(lambda: len(sent) == 2)
        assert b"AUTH" in sent[0] and b"SELECT" in sent[1]
        store.close()


def test_an_answer_that_came_while_the_process_was_held_up_counts(store, monkeypatch):
    """A busy event loop may see its timer before the socket: what is there by then is read all the same."""
    store.set(KEYS[0], b"x")
    connection = store._pool.get_connection()
    timed, late = connection._sock, []
    receive = timed._receive

    def held_up(receive_now, size):
        def patient(size):
            if timed._sock.gettimeout():
                select.select([timed._sock], [], [], LONG)
                late.append(size)
                raise TimeoutError
            return receive_now(size)
        return receive(patient, size)

    monkeypatch.setattr(timed, "_receive", held_up)
    store._pool.release(connection)
    assert store.get(KEYS[0]) == b"x" and late


def test_a_name_is_looked_up_by_the_probe_only(server, monkeypatch):
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
    store = open_store(f"redis://cache.example:{server.port}/0", 10, 10_000)
    assert asked == ["cache.example"]
    fails(lambda: store.get(KEYS[0]), "cache.example")
    fails(store.ping, "no such name")
    assert len(asked) == 2
    answer = None
    store.ping()
    assert store.set(KEYS[0], b"x") == 0 and len(asked) == 3
    store.close()


def test_a_replica_is_refused_until_it_is_a_master(store, client):
    store.set(KEYS[0], b"x")
    store.claim(KEYS[0], "mine", LONG)
    client.execute_command("REPLICAOF", "127.0.0.1", "1")
    for write in (lambda: store.set(KEYS[1], b"x"), lambda: store.claim(KEYS[1], "t", LONG), store.clear, store.ping,
                  lambda: store.peek(KEYS[0], "mine"), lambda: store.touch(KEYS[:1])):
        fails(write, "(?i)read.?only")
    client.execute_command("REPLICAOF", "NO", "ONE")
    assert store.set(KEYS[1], b"x") == 0 and store.get(KEYS[0]) == b"x"


def test_without_memory_a_set_is_refused_and_changes_nothing(store, client):
    store.set(KEYS[0], b"x")
    client.config_set("maxmemory-policy", "noeviction")
    client.config_set("maxmemory", 1)
    for write in (lambda: store.set(KEYS[1], b"y"), lambda: store.set(KEYS[0], b"y"), store.ping,
                  lambda: store.claim(KEYS[0], "t", LONG)):
        fails(write, "OutOfMemory|OOM")
    assert store.size() == (1, 1 + OVERHEAD) and store.get(KEYS[0]) == b"x"
    client.config_set("maxmemory", 0)
    assert store.set(KEYS[1], b"y") == 0 and store.size()[0] == 2


def test_a_password_is_asked_for_used_and_never_told(tmp_path, caplog):
    with RedisServer(tmp_path, "--requirepass", "hush/hush") as server:
        refused = open_store(server.url, 10, 10_000)
        fails(refused.ping, "(?i)auth")
        wrong = open_store(f"redis://:wr0ng@127.0.0.1:{server.port}/1", 10, 10_000)
        caplog.set_level(logging.INFO)
        guard = GuardedStore(wrong, probe_every=LONG)
        assert guard.get(KEYS[0]) is None and "wr0ng" not in caplog.text + wrong.name
        assert f"redis://127.0.0.1:{server.port}/1" in caplog.text
        right = open_store(f"redis://:hush%2Fhush@127.0.0.1:{server.port}/1", 10, 10_000)
        assert right.set(KEYS[0], b"x") == 0 and right.get(KEYS[0]) == b"x"
        for store in (refused, guard, right):
            store.close()


@pytest.mark.parametrize("reply", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"", b":\r\n", b"*3\r\n:1\r\n", b"$99\r\nx",
                                   b"-LOADING Redis is loading the dataset in memory\r\n", b"-ERR no\r\n", b"$x\r\n",
                                   b"-BUSY Redis is busy running a script.\r\n", b"\xff\x00\r\n"])
def test_something_else_that_answers_is_an_error(reply):
    with pretending(reply) as (address, _):
        store = open_store(f"redis://{address}/0", 10, 10_000)
        for operation in (store.size, lambda: store.peek(KEYS[0], "t"), lambda: store.claim(KEYS[0], "t", 1),
                          lambda: store.get(KEYS[0]), lambda: store.set(KEYS[0], b"x")):
            fails(operation)
        store.close()


def test_more_callers_than_places_share_the_connections(store, client):
    """A crowd of 300 opens no more connections than the guard lets in."""
    guard = GuardedStore(store)
    with ThreadPoolExecutor(150) as pool:
        list(pool.map(lambda key: guard.set(key, b"x"), KEYS[:300]))
    assert len(client.client_list()) <= store.concurrency + 1
    guard.close()


def test_what_expired_by_itself_leaves_the_books(server, client):
    """The least recently used expires first, so the next sets find and drop it; it is not counted as evicted."""
    store = RedisStore(server.url, 10, 10_000, entry_ttl=0.1)
    store.set(KEYS[0], b"x")
    store.set(KEYS[1], b"x")
    until(lambda: store.get(KEYS[0]) is None and store.get(KEYS[1]) is None)
    store = RedisStore(server.url, 10, 10_000)
    assert store.set(KEYS[2], b"x") == 0 and store.size() == (1, 1 + OVERHEAD)


def test_use_puts_the_expiry_off(server, client):
    store = RedisStore(server.url, 10, 10_000, entry_ttl=100)
    store.set(KEYS[0], b"x")
    for name in (f"{redis_store.PREFIX}entry:{KEYS[0]}", f"{redis_store.PREFIX}used", f"{redis_store.PREFIX}sizes"):
        client.expire(name, 50)
    store.touch([KEYS[0]])
    assert min(client.ttl(name) for name in client.keys()) > 90


def test_what_the_server_evicted_is_healed_when_met(store, client):
    """Gone under us: a miss; off the books when set, touched or the oldest."""
    for key in KEYS[:4]:
        store.set(key, b"x")
    for key in KEYS[:3]:
        client.delete(f"{redis_store.PREFIX}entry:{key}")
    assert store.get(KEYS[1]) is None
    store.touch([KEYS[1]])
    assert store.size() == (3, 3 * (1 + OVERHEAD))
    assert store.set(KEYS[2], b"xx") == 0
    assert store.size() == (2, 3 + 2 * OVERHEAD)


@pytest.mark.parametrize("book", ["used", "sizes"])
def test_a_lost_book_empties_the_cache_and_no_more(store, client, book):
    for key in KEYS[:5]:
        store.set(key, b"x")
    client.delete(f"{redis_store.PREFIX}{book}")
    store.set(KEYS[7], b"x")
    assert store.size() == (1, 1 + OVERHEAD)
    assert [key for key in KEYS[:10] if store.get(key)] == [KEYS[7]]


def test_a_purge_leaves_no_values_behind(client, server):
    """All are gone at once; what is set meanwhile stays."""
    store = RedisStore(server.url, 5000, 1 << 20)
    for key in KEYS:
        store.set(key, b"x")
    store.clear()
    assert store.size() == (0, 0) and client.keys(f"{redis_store.PREFIX}*") == []
    store.set(KEYS[0], b"x")
    assert store.get(KEYS[0]) == b"x"


def test_hosts_need_not_agree_on_the_time(server, monkeypatch):
    """No claim or entry depends on a host's clock."""
    here, there = open_store(server.url, 10, 10_000), open_store(server.url, 10, 10_000)
    here.claim(KEYS[0], "mine", LONG)
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert there.claim(KEYS[0], "yours", LONG) == Claim("mine", None)
    here.close()
    there.close()
