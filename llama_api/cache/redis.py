"""The shared store of many hosts: a Redis (6 or later, or what speaks its protocol and Lua), see ``stores``.

Every operation is one Lua script, so it is atomic and one round trip. All times are measured by the server.
"""

import hashlib
import socket
import uuid
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

import redis
from redis.backoff import NoBackoff
from redis.connection import parse_url
from redis.retry import Retry

from . import redis_connection
from .store import OVERHEAD, WANTED_FOR, Claim, StoreError

PREFIX = "llama_api:1:"  # 1 is the version of the layout
ENTRY_TTL = 30 * 86400.0  # seconds an entry that nobody uses stays
BATCH = 500  # entries per script call, so that no call holds the server up

_PRELUDE = f"""
local entry, used, sizes = '{PREFIX}entry:', '{PREFIX}used', '{PREFIX}sizes'
local claim, waits = '{PREFIX}claim:', '{PREFIX}waits:'
local function newest()
  local top = redis.call('ZREVRANGE', used, 0, 0, 'WITHSCORES')
  return tonumber(top[2] or 0)
end
local function forget(key)
  local size = tonumber(redis.call('HGET', sizes, key) or 0)
  redis.call('ZREM', used, key)
  redis.call('HDEL', sizes, key)
  redis.call('UNLINK', entry .. key)
  return redis.call('HINCRBY', sizes, 'bytes', -size)
end
local function ours(key, token)
  local held = redis.call('HMGET', claim .. key, 'token', 'outcome')
  return held[1] == token and not held[2]
end
local function wait_for(key, token)
  redis.call('SET', waits .. key, token, 'PX', {int(WANTED_FOR * 1000)})
end
"""
_SCRIPTS = {
    "get": """
        if redis.call('ZSCORE', used, ARGV[1]) then return redis.call('GET', entry .. ARGV[1]) end
        return false""",
    # What takes memory is written first: a server that has none refuses it before anything has changed.
    "set": """
        local key, size, ttl = ARGV[1], tonumber(ARGV[3]), ARGV[4]
        local max_entries, max_bytes, evicted = tonumber(ARGV[5]), tonumber(ARGV[6]), 0
        redis.call('SET', entry .. key, ARGV[2], 'PX', ttl)
        if redis.call('HLEN', sizes) ~= redis.call('ZCARD', used) + 1 then redis.call('UNLINK', used, sizes) end
        redis.call('ZADD', used, newest() + 1, key)
        local bytes = redis.call('HINCRBY', sizes, 'bytes', size - tonumber(redis.call('HGET', sizes, key) or 0))
        redis.call('HSET', sizes, key, size)
        while true do
          local oldest = redis.call('ZRANGE', used, 0, 0)[1]
          if not oldest then break end
          local there = redis.call('EXISTS', entry .. oldest) == 1
          if there and redis.call('ZCARD', used) <= max_entries and bytes <= max_bytes then break end
          bytes = forget(oldest)
          if there then evicted = evicted + 1 end
        end
        redis.call('PEXPIRE', used, ttl)
        redis.call('PEXPIRE', sizes, ttl)
        return evicted""",
    "touch": """
        local score, ttl = newest(), ARGV[1]
        for i = 2, #ARGV do
          if redis.call('ZSCORE', used, ARGV[i]) then
            if redis.call('PEXPIRE', entry .. ARGV[i], ttl) == 1 then
              score = score + 1
              redis.call('ZADD', used, score, ARGV[i])
            else
              forget(ARGV[i])
            end
          end
        end
        redis.call('PEXPIRE', used, ttl)
        redis.call('PEXPIRE', sizes, ttl)
        return score""",
    "delete": "if redis.call('ZSCORE', used, ARGV[1]) then forget(ARGV[1]) end return 0",
    "clear": """
        redis.call('UNLINK', sizes)
        if redis.call('EXISTS', used) == 0 then return 0 end
        redis.call('RENAME', used, ARGV[1])
        redis.call('PEXPIRE', ARGV[1], 3600000)
        return 1""",
    "sweep": """
        local keys = redis.call('ZRANGE', ARGV[1], 0, tonumber(ARGV[2]) - 1)
        for _, key in ipairs(keys) do
          if not redis.call('ZSCORE', used, key) then redis.call('UNLINK', entry .. key) end
        end
        redis.call('ZREMRANGEBYRANK', ARGV[1], 0, tonumber(ARGV[2]) - 1)
        return #keys""",
    "size": "return {redis.call('ZCARD', used), tonumber(redis.call('HGET', sizes, 'bytes') or 0)}",
    "claim": """
        local key, token = ARGV[1], ARGV[2]
        local held = redis.call('HMGET', claim .. key, 'token', 'outcome')
        if held[1] and held[1] ~= token and not held[2] then
          wait_for(key, held[1])
          return held[1]
        end
        redis.call('HSET', claim .. key, 'token', token)
        redis.call('HDEL', claim .. key, 'outcome')
        redis.call('PEXPIRE', claim .. key, ARGV[3])
        return false""",
    "renew": "return ours(ARGV[1], ARGV[2]) and redis.call('PEXPIRE', claim .. ARGV[1], ARGV[3]) or 0",
    "settle": """
        if not ours(ARGV[1], ARGV[2]) then return 0 end
        redis.call('HSET', claim .. ARGV[1], 'outcome', ARGV[3])
        return redis.call('PEXPIRE', claim .. ARGV[1], ARGV[4])""",
    "release": "return ours(ARGV[1], ARGV[2]) and redis.call('DEL', claim .. ARGV[1]) or 0",
    "peek": """
        local held = redis.call('HMGET', claim .. ARGV[1], 'token', 'outcome')
        if held[1] ~= ARGV[2] then return false end
        if not held[2] then wait_for(ARGV[1], ARGV[2]) end
        return {held[2]}""",
    "wanted": "return redis.call('GET', waits .. ARGV[1]) == ARGV[2] and ours(ARGV[1], ARGV[2]) and 1 or 0",
    "ping": f"return redis.call('SET', '{PREFIX}ping', 1, 'PX', 1000)",
}


class RedisStore:
    """A Store in the Redis at ``url``. An entry that was neither set nor touched for ``entry_ttl`` seconds goes."""

    concurrency = 128

    def __init__(self, url: str, max_entries: int, max_bytes: int, entry_ttl: float = ENTRY_TTL):
        """Look the host's name up. Nothing is connected before the first operation."""
        options = parse_url(url)
        self._host, self._port = options.setdefault("host", "localhost"), options.setdefault("port", 6379)
        parts = urlsplit(url)
        self.name = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
        self.max_entries, self.max_bytes, self._ttl = max_entries, max_bytes, _ms(entry_ttl)
        self._scripts = {name: _PRELUDE + body for name, body in _SCRIPTS.items()}
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
            pass  # told by the first operation; ping looks again

    def get(self, key: str) -> bytes | None:
        return self._run("get", key)

    def set(self, key: str, value: bytes) -> int:
        size = len(value) + OVERHEAD
        if size > self.max_bytes or self.max_entries < 1:
            self.delete(key)
            return 0
        return self._run("set", key, value, size, self._ttl, self.max_entries, self.max_bytes)

    def touch(self, keys: Iterable[str]) -> None:
        wanted = list(keys)
        for start in range(0, len(wanted), BATCH):
            self._run("touch", self._ttl, *wanted[start:start + BATCH])

    def delete(self, key: str) -> None:
        self._run("delete", key)

    def clear(self) -> None:
        """At once nothing is found any more; then the values are removed, some at a time."""
        trash = f"{PREFIX}trash:{uuid.uuid4().hex}"
        more = self._run("clear", trash)
        while more:
            more = self._run("sweep", trash, BATCH) == BATCH

    def size(self) -> tuple[int, int]:
        entries, total = self._run("size")
        return entries, total

    def claim(self, key: str, token: str, ttl: float) -> Claim | None:
        holder = self._run("claim", key, token, _ms(ttl))
        return Claim(holder.decode(), None) if holder else None

    def renew(self, key: str, token: str, ttl: float) -> bool:
        return bool(self._run("renew", key, token, _ms(ttl)))

    def settle(self, key: str, token: str, outcome: bytes, linger: float) -> None:
        self._run("settle", key, token, outcome, _ms(linger))

    def release(self, key: str, token: str) -> None:
        self._run("release", key, token)

    def peek(self, key: str, token: str) -> Claim | None:
        found = self._run("peek", key, token)
        return Claim(token, found[0]) if found else None

    def wanted(self, key: str, token: str) -> bool:
        return bool(self._run("wanted", key, token))

    def ping(self) -> None:
        """As in Store; it alone may take longer, for it looks the host's name up anew."""
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

    def _run(self, script: str, *values: str | bytes | int) -> Any:
        try:
            try:
                return self._client.execute_command("EVALSHA", self._digests[script], 0, *values)
            except redis.exceptions.NoScriptError:
                return self._client.execute_command("EVAL", self._scripts[script], 0, *values)
        except (redis.RedisError, OSError, ValueError) as error:  # ValueError: no Redis answers there, but something
            raise StoreError(f"{type(error).__name__}: {error}") from error


def _ms(seconds: float) -> int:
    return max(1, round(seconds * 1000))
