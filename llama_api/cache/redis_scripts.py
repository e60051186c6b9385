"""The Lua scripts of the Redis store: one per operation, so that each is atomic and takes one round trip.

Every key begins with ``llama_api:2:``, 2 being the version of this layout:
  epoch                the name of the epoch; a lost one is replaced by a new one
  entry:<key>          the value, with a TTL (30 days) that set and touch renew
  used                 sorted set of keys by their last use, a counter; only keys in it are found
  sizes                hash of each key's counted bytes, and their sum in the field ``bytes``
  claim:<epoch>:<key>  the token of the claim that is under way; its TTL is the claim's
  outcome:<token>      the outcome of a claim, while a process waits for it
  waits:<token>        sorted set of the followers of a claim, by expiry
  leases:<name>        sorted set of the tokens that hold a lease of a name, by expiry
  queue:<name>         hash of the waiters for one of them: token to arrival, limit and expiry
All times are on the server's clock, in milliseconds, and all keys expire when no longer used.

The server may remove entries by itself: expired ones, the least recently used first, which every set checks; or any,
due to ``maxmemory``. A removed key is a miss, and it is dropped from ``used`` and ``sizes`` when it is set, touched or
becomes the oldest. If the server removes ``used`` or ``sizes``, the next set drops the other: the cache starts empty,
and the remaining values expire.
"""

from .store import OUTDATED, QUEUED_FOR, WANTED_FOR

PREFIX = "llama_api:2:"

_PRELUDE = f"""
local entry, used, sizes, epochs = '{PREFIX}entry:', '{PREFIX}used', '{PREFIX}sizes', '{PREFIX}epoch'
local claims, outcomes, waits = '{PREFIX}claim:', '{PREFIX}outcome:', '{PREFIX}waits:'
local leases, queues = '{PREFIX}leases:', '{PREFIX}queue:'
local function clock()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end
local function epoch()
  local name = redis.call('GET', epochs)
  if not name then
    local time = redis.call('TIME')
    name = time[1] .. '.' .. time[2]
    redis.call('SET', epochs, name, 'PX', ENTRY_TTL)
  end
  return name
end
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
local function keep_books()
  for _, book in ipairs({{used, sizes, epochs}}) do redis.call('PEXPIRE', book, ENTRY_TTL) end
end
local function wait_for(token, follower)
  redis.call('ZADD', waits .. token, clock() + WANTED_FOR, follower)
  redis.call('PEXPIRE', waits .. token, WANTED_FOR)
end
local function wanted(token)
  return redis.call('ZCOUNT', waits .. token, clock(), '+inf') > 0
end
local function take(name, token, ttl)
  redis.call('ZADD', leases .. name, clock() + ttl, token)
  redis.call('PEXPIRE', leases .. name, ttl)
end
"""
_SCRIPTS = {
    "get": """
        local found = {epoch()}
        for i, key in ipairs(ARGV) do
          found[i + 1] = redis.call('ZSCORE', used, key) and redis.call('GET', entry .. key)
        end
        return found""",
    # Commands that need memory come first: a full server refuses them before anything has changed.
    "set": """
        local key, size, max_entries, max_bytes = ARGV[1], tonumber(ARGV[3]), tonumber(ARGV[5]), tonumber(ARGV[6])
        if epoch() ~= ARGV[4] then return OUTDATED end
        if size > max_bytes or max_entries < 1 then
          if redis.call('ZSCORE', used, key) then forget(key) end
          return 0
        end
        redis.call('SET', entry .. key, ARGV[2], 'PX', ENTRY_TTL)
        if redis.call('HLEN', sizes) ~= redis.call('ZCARD', used) + 1 then redis.call('UNLINK', used, sizes) end
        redis.call('ZADD', used, newest() + 1, key)
        local bytes = redis.call('HINCRBY', sizes, 'bytes', size - tonumber(redis.call('HGET', sizes, key) or 0))
        redis.call('HSET', sizes, key, size)
        local evicted = 0
        while true do
          local oldest = redis.call('ZRANGE', used, 0, 0)[1]
          if not oldest then break end
          local there = redis.call('EXISTS', entry .. oldest) == 1
          if there and redis.call('ZCARD', used) <= max_entries and bytes <= max_bytes then break end
          bytes = forget(oldest)
          if there then evicted = evicted + 1 end
        end
        keep_books()
        return evicted""",
    "touch": """
        local score = newest()
        for i = 1, #ARGV do
          if redis.call('ZSCORE', used, ARGV[i]) then
            if redis.call('PEXPIRE', entry .. ARGV[i], ENTRY_TTL) == 1 then
              score = score + 1
              redis.call('ZADD', used, score, ARGV[i])
            else
              forget(ARGV[i])
            end
          end
        end
        keep_books()
        return score""",
    "delete": "if redis.call('ZSCORE', used, ARGV[1]) then forget(ARGV[1]) end return 0",
    "clear": """
        redis.call('SET', epochs, ARGV[2], 'PX', ENTRY_TTL)
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
        local epoch, token = epoch(), ARGV[2]
        local claim = claims .. epoch .. ':' .. ARGV[1]
        local holder = redis.call('GET', claim)
        if holder and holder ~= token then
          wait_for(holder, token)
          return {epoch, holder}
        end
        redis.call('SET', claim, token, 'PX', ARGV[3])
        return {epoch, token}""",
    "peek": """
        local claim, token, follower = claims .. ARGV[1], ARGV[2], ARGV[3]
        if redis.call('GET', claim) == token then
          wait_for(token, follower)
          return ''
        end
        local outcome = redis.call('GET', outcomes .. token)
        if outcome then
          redis.call('ZREM', waits .. token, follower)
          if not wanted(token) then redis.call('UNLINK', outcomes .. token, waits .. token) end
        end
        return outcome""",
    "settle": """
        local claim, token = claims .. ARGV[1], ARGV[2]
        if redis.call('GET', claim) ~= token then return 0 end
        if wanted(token) then redis.call('SET', outcomes .. token, ARGV[3], 'PX', ARGV[4]) end
        return redis.call('UNLINK', claim)""",
    "release": """
        local claim = claims .. ARGV[1]
        return redis.call('GET', claim) == ARGV[2] and redis.call('UNLINK', claim) or 0""",
    # ttl, number of claims, their epoch:key and token each, then name and token of each lease
    "renew": """
        local ttl, last, found = ARGV[1], 2 + 2 * ARGV[2], {epoch()}
        for i = 3, last, 2 do
          local claim, token = claims .. ARGV[i], ARGV[i + 1]
          if redis.call('GET', claim) == token then
            redis.call('PEXPIRE', claim, ttl)
            if wanted(token) then found[#found + 1] = token end
          end
        end
        for i = last + 1, #ARGV, 2 do take(ARGV[i], ARGV[i + 1], ttl) end
        return found""",
    "lease": """
        local name, token, limit, ttl = ARGV[1], ARGV[2], tonumber(ARGV[4]), ARGV[5]
        local now, taken, queue = clock(), leases .. name, queues .. name
        redis.call('ZREMRANGEBYSCORE', taken, '-inf', now)
        if redis.call('ZSCORE', taken, token) then take(name, token, ttl) return 1 end
        local count, before, arrived, others = redis.call('ZCARD', taken), 0, now - ARGV[3], {}
        local waiting = redis.call('HGETALL', queue)
        for i = 1, #waiting, 2 do
          local since, most, ends = string.match(waiting[i + 1], '(%d+) (%d+) (%d+)')
          if waiting[i] == token then
            arrived = tonumber(since)
          elseif tonumber(ends) <= now then
            redis.call('HDEL', queue, waiting[i])
          elseif tonumber(most) > count then
            others[#others + 1] = tonumber(since)
          end
        end
        for _, since in ipairs(others) do
          if since < arrived then before = before + 1 end
        end
        if count + before < limit then
          redis.call('HDEL', queue, token)
          take(name, token, ttl)
          return 1
        end
        redis.call('HSET', queue, token, string.format('%d %d %d', arrived, limit, now + QUEUED_FOR))
        redis.call('PEXPIRE', queue, QUEUED_FOR)
        return 0""",
    "unlease": "return redis.call('ZREM', leases .. ARGV[1], ARGV[2]) + redis.call('HDEL', queues .. ARGV[1], ARGV[2])",
    "ping": f"return redis.call('SET', '{PREFIX}ping', 1, 'PX', 1000)",
}


def scripts(entry_ttl: int) -> dict[str, str]:
    """The scripts by operation; entries expire after ``entry_ttl`` milliseconds without use."""
    settled = {"ENTRY_TTL": entry_ttl, "OUTDATED": OUTDATED, "WANTED_FOR": int(WANTED_FOR * 1000),
               "QUEUED_FOR": int(QUEUED_FOR * 1000)}
    prelude = "".join(f"local {name} = {value}\n" for name, value in settled.items()) + _PRELUDE
    return {name: prelude + body for name, body in _SCRIPTS.items()}
