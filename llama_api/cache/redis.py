"""The shared store of many hosts: Redis 6 or later, or a compatible server with Lua; see redis_scripts."""

import hashlib
import socket
import uuid
from collections.abc import Callable, Iterable, Sequence
from typing import Any
from urllib.parse import urlsplit

import redis
from redis.backoff import NoBackoff
from redis.connection import parse_url
from redis.retry import Retry

from . import redis_connection
from .redis_scripts import PREFIX, scripts
from .store import OVERHEAD, Claim, Found, Lease, Renewal, StoreError

ENTRY_TTL = 30 * 86400.0  # seconds for which an unused entry is kept
BATCH = 500  # entries per script call, so that no call blocks the server


class RedisStore:
    """A LeasingStore in the Redis at ``url``. Entries not set or touched for ``entry_ttl`` seconds expire."""

    concurrency = 128

    def __init__(self, url: str, max_entries: int, max_bytes: int, entry_ttl: float = ENTRY_TTL):
        """Resolve the host name. The first operation connects."""
        options = parse_url(url)
        self._host, self._port = options.setdefault("host", "localhost"), options.setdefault("port", 6379)
        parts = urlsplit(url)
        self.name = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
        self.max_entries, self.max_bytes = max_entries, max_bytes
        self._scripts = scripts(_ms(entry_ttl))
        self._digests = {name: hashlib.sha1(text.encode()).hexdigest() for name, text in self._scripts.items()}
        self._addresses: list[tuple[int, Any]] = []
        options["connection_class"] = (redis_connection.TlsConnection if "connection_class" in options
                                       else redis_connection.TcpConnection)
        self._pool = redis.ConnectionPool(
            **options, addresses=self._addresses, max_connections=10_000, socket_timeout=redis_connection.BUDGET,
            socket_connect_timeout=redis_connection.BUDGET, retry=Retry(NoBackoff(), 0), protocol=2, driver_info=None)
        self._client = redis.Redis(connection_pool=self._pool)
        try:
            self._resolve()
        except OSError:
            pass  # reported by the first operation; ping resolves again

    def get(self, key: str) -> Found:
        return self.get_many([key])[0]

    def get_many(self, keys: Sequence[str]) -> list[Found]:
        return self._run("get", *keys, read=lambda reply: [
            Found(reply[place], reply[0].decode()) for place in range(1, len(keys) + 1)])

    def set(self, key: str, value: bytes, epoch: str) -> int:
        return self._run("set", key, value, len(value) + OVERHEAD, epoch, self.max_entries, self.max_bytes)

    def touch(self, keys: Iterable[str]) -> None:
        wanted = list(keys)
        for start in range(0, len(wanted), BATCH):
            self._run("touch", *wanted[start:start + BATCH])

    def delete(self, key: str) -> None:
        self._run("delete", key)

    def clear(self) -> str:
        """As in Store; entries become unavailable at once, then their values are removed in batches."""
        epoch = uuid.uuid4().hex
        trash = f"{PREFIX}trash:{epoch}"
        more = self._run("clear", trash, epoch)
        while more:
            more = self._run("sweep", trash, BATCH) == BATCH
        return epoch

    def size(self) -> tuple[int, int]:
        return self._run("size", read=lambda reply: (int(reply[0]), int(reply[1])))

    def claim(self, key: str, token: str, ttl: float) -> Claim:
        return self._run("claim", key, token, _ms(ttl),
                         read=lambda reply: Claim(key, reply[0].decode(), reply[1].decode()))

    def peek(self, claim: Claim, follower: str) -> bytes | None:
        return self._run("peek", _where(claim), claim.token, follower)

    def settle(self, claim: Claim, outcome: bytes, linger: float) -> None:
        self._run("settle", _where(claim), claim.token, outcome, _ms(linger))

    def release(self, claim: Claim) -> None:
        self._run("release", _where(claim), claim.token)

    def renew(self, claims: Sequence[Claim], leases: Sequence[Lease], ttl: float) -> Renewal:
        held = [text for claim in claims for text in (_where(claim), claim.token)]
        taken = [text for lease in leases for text in lease]
        return self._run("renew", _ms(ttl), len(claims), *held, *taken, read=lambda reply: Renewal(
            reply[0].decode(), frozenset(token.decode() for token in reply[1:])))

    def lease(self, lease: Lease, waited: float, limit: int, ttl: float) -> bool:
        return self._run("lease", *lease, int(waited * 1000), limit, _ms(ttl), read=bool)

    def unlease(self, lease: Lease) -> None:
        self._run("unlease", *lease)

    def ping(self) -> None:
        """As in Store, but it may take longer, as it resolves the host name again."""
        try:
            self._pool.disconnect(inuse_connections=False)
            self._resolve()
        except OSError as error:
            raise StoreError(f"{type(error).__name__}: {error}") from error
        self._run("ping")

    def close(self) -> None:
        self._pool.disconnect()

    def _resolve(self) -> None:
        found = socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
        self._addresses[:] = [(family, address) for family, _, _, _, address in found]

    def _run(self, script: str, *values: str | bytes | int, read: Callable[[Any], Any] = lambda reply: reply) -> Any:
        """Run a script and return its reply as parsed by ``read``. Raises StoreError."""
        try:
            try:
                return read(self._client.execute_command("EVALSHA", self._digests[script], 0, *values))
            except redis.exceptions.NoScriptError:
                return read(self._client.execute_command("EVAL", self._scripts[script], 0, *values))
        except (redis.RedisError, OSError, ValueError) as error:  # ValueError: the server is not Redis
            raise StoreError(f"{type(error).__name__}: {error}") from error
        except (TypeError, AttributeError, IndexError) as error:
            raise StoreError("what answers there is not a Redis") from error


def _where(claim: Claim) -> str:
    """The name of a claim in the scripts."""
    return f"{claim.epoch}:{claim.key}"


def _ms(seconds: float) -> int:
    return max(1, round(seconds * 1000))
