"""The fixtures of the stores' tests: both kinds, opened as often as wanted."""

import pytest

from llama_api.cache import open_store, redis_connection, redis_scripts, sqlite, sqlite_file
from llama_api.cache.sqlite import SqliteStore
from tests.cache import LONG
from tests.support.redis_server import RedisServer


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """Let the stores tolerate a busy machine; tests of their time limits undo this."""
    monkeypatch.setattr(sqlite, "BUDGET", LONG)
    monkeypatch.setattr(sqlite, "SLOW_BUDGET", LONG)
    monkeypatch.setattr(sqlite_file, "BUSY", LONG)
    monkeypatch.setattr(redis_connection, "BUDGET", LONG)
    waiting_lasts(monkeypatch, LONG)


def waiting_lasts(monkeypatch, seconds):
    """Set how long a waiter is remembered."""
    for module, name in ((sqlite, "WANTED_FOR"), (redis_scripts, "WANTED_FOR"), (redis_scripts, "QUEUED_FOR")):
        monkeypatch.setattr(module, name, seconds)


@pytest.fixture
def fading(monkeypatch):
    """Forget waiters soon; to be requested before the store."""
    waiting_lasts(monkeypatch, 0.5)


@pytest.fixture(scope="session")
def shared_redis_server(tmp_path_factory):
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def redis_url(shared_redis_server):
    """The URL of an empty Redis."""
    with shared_redis_server.client() as client:
        client.flushall()
    return shared_redis_server.url


@pytest.fixture
def path(tmp_path):
    """The path of a future SQLite store."""
    return str(tmp_path / "answers.db")


@pytest.fixture
def open_sqlite(path):
    """Open that store as often as wanted."""
    stores = []

    def open_one(max_entries=1000, max_bytes=16 << 20, **options):
        stores.append(SqliteStore(path, max_entries, max_bytes, **options))
        return stores[-1]

    yield open_one
    for store in stores:
        store.close()


@pytest.fixture(params=["sqlite", "redis"])
def url(request):
    """The URL of an empty store of each kind."""
    if request.param == "redis":
        return request.getfixturevalue("redis_url")
    return "sqlite:///" + request.getfixturevalue("path")


@pytest.fixture
def opened(url):
    """Open the store as often as wanted: each is another process's, or host's, view of it."""
    stores = []

    def open_one(max_entries=1000, max_bytes=1 << 20):
        stores.append(open_store(url, max_entries, max_bytes))
        return stores[-1]

    yield open_one
    for store in stores:
        store.close()


@pytest.fixture
def store(opened):
    return opened()
