#!lua flags=allow-oom
-- fetch: lease pending tasks to a server, after the upkeep of the queue that everybody shares.
-- 1 promote what is due; 2 recover lapsed leases; 3 lease; 4 sweep; 5 wake the next idle server.
-- The same number again answers with the same tasks, less those that are no longer owned under it.
-- include: clock wake count tags lock erase
-- KEYS[1] tasks      hash    id -> message
-- KEYS[2] pending    zset    ids by order tag
-- KEYS[3] scheduled  zset    ids by due time
-- KEYS[4] active     zset    ids by lease expiry
-- KEYS[5] retry      zset    ids by due time
-- KEYS[6] completed  zset    ids by the time until which they are kept
-- KEYS[7] dead       zset    ids by time of death
-- KEYS[8] owner      hash    id -> lease token
-- KEYS[9] crashes    hash    id -> crash count
-- KEYS[10] failures  hash    id -> failure record
-- KEYS[11] results   hash    id -> result record
-- KEYS[12] unique    hash    locks
-- KEYS[13] keys      hash    id -> fairness key
-- KEYS[14] fairness  zset    fairness keys by last tag
-- KEYS[15] fetches   hash    server id -> msgpack [number, time us, ids]
-- KEYS[16] cancels   hash    id -> retention us
-- KEYS[17] progress  hash    id -> done/total
-- KEYS[18] wake      list
-- KEYS[19] meta      hash    paused, virtual time, when and where the sweep of hashes was
-- KEYS[20] stats     hash    counters
-- KEYS[21] done      channel of ended tasks
-- ARGV[1] now          int us  empty: the store's clock
-- ARGV[2] server       text    id of the server
-- ARGV[3] number       int     of this fetch; rising per server and queue
-- ARGV[4] wanted       int     tasks at most, 0 to 500
-- ARGV[5] lease        int us
-- ARGV[6] max_crashes  int     a task that crashed so often is dead
-- ARGV[7] dead_limit   int     dead tasks kept at most
-- ARGV[8] dead_age     int us  and for how long
-- ARGV[9] max_bytes    int     of messages; one task is taken however large
-- returns now us; us until something is next due (-1: nothing known); 1 when upkeep has more to do;
--   tasks recovered; tasks dead of crashes; ids; messages; failure records; crash counts;
--   the caller's own lapsed ids; 1 when the queue is paused
local k = {
  tasks = KEYS[1], completed = KEYS[6], active = KEYS[4], owner = KEYS[8], crashes = KEYS[9],
  failures = KEYS[10], results = KEYS[11], unique = KEYS[12], keys = KEYS[13], cancels = KEYS[16],
  progress = KEYS[17], stats = KEYS[20], done = KEYS[21],
}
local pending, scheduled, retry, dead = KEYS[2], KEYS[3], KEYS[5], KEYS[7]
local fairness, fetches, meta = KEYS[14], KEYS[15], KEYS[19]
local now, server, number = clock(ARGV[1]), ARGV[2], tonumber(ARGV[3])
local wanted, lease, max_crashes = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local token = server .. '/' .. ARGV[3]
local limit = 100
local more = 0

local function lapsed_before(set, moment, most)
  return redis.call('ZRANGEBYSCORE', set, '-inf', whole(moment), 'LIMIT', 0, most)
end

-- What goes with the ids of a batch; empty where no task of the queue has any.
local function beside(key, ids)
  if #ids == 0 or redis.call('EXISTS', key) == 0 then
    return {}
  end
  return redis.call('HMGET', key, unpack(ids))
end

local paused = redis.call('HEXISTS', meta, 'paused')
local last = redis.call('HGET', fetches, server)
if last then
  local before = cmsgpack.unpack(last)
  if number < before[1] then
    return { whole(now), -1, 0, 0, 0, {}, {}, {}, {}, {}, paused }
  end
  if number == before[1] then
    local ids, owners = {}, beside(k.owner, before[3])
    for i, id in ipairs(before[3]) do
      if owners[i] == token then
        ids[#ids + 1] = id
      end
    end
    return {
      whole(now), 0, 0, 0, 0, ids, beside(k.tasks, ids), beside(k.failures, ids),
      beside(k.crashes, ids), {}, paused,
    }
  end
end

-- 1 promote
for _, set in ipairs({ scheduled, retry }) do
  local due = lapsed_before(set, now, limit)
  if #due > 0 then
    redis.call('ZREM', set, unpack(due))
    to_pending(pending, meta, fairness, k.keys, due)
    if #due == limit then
      more = 1
    end
  end
end

-- 2 recover
local recovered, died, own = {}, {}, {}
local lapsed = lapsed_before(k.active, now, limit)
if #lapsed > 0 then
  local owners, counts = beside(k.owner, lapsed), beside(k.crashes, lapsed)
  local cancelled, given_up, back = beside(k.cancels, lapsed), {}, {}
  local crashed = 0
  local mine = server .. '/'
  for i, id in ipairs(lapsed) do
    local owner = owners[i]
    if owner and string.sub(owner, 1, #mine) == mine then
      own[#own + 1] = id
    elseif cancelled[i] then
      given_up[#given_up + 1] = id
    else
      -- The first lapse counts for all that the server held; later ones for what it had marked.
      local text = counts[i] or '0'
      local crashes = tonumber(string.match(text, '^%d+')) or 0
      if crashes == 0 or string.sub(text, -1) == '+' then
        crashes = crashes + 1
        crashed = crashed + 1
      end
      if crashes >= max_crashes then
        died[#died + 1] = id
        redis.call('HSET', k.crashes, id, crashes .. '!')
      else
        back[#back + 1] = id
        redis.call('HSET', k.crashes, id, crashes)
      end
    end
  end
  for _, ids in ipairs({ given_up, died, back }) do
    release(k, ids)
  end
  end_cancelled(k, now, given_up)
  to_head(pending, meta, back)
  if #died > 0 then
    local args = {}
    for _, id in ipairs(died) do
      args[#args + 1] = whole(now)
      args[#args + 1] = id
      redis.call('SPUBLISH', k.done, id)
    end
    redis.call('ZADD', dead, unpack(args))
    unlock(k.unique, now, died)
    if redis.call('EXISTS', k.keys) == 1 then
      redis.call('HDEL', k.keys, unpack(died))
    end
  end
  count(k.stats, now, 'crashed', crashed)
  count(k.stats, now, 'dead', #died)
  recovered = back
  if #lapsed == limit and #own < limit then
    more = 1
  end
end

-- 3 lease
local ids, messages, lost = {}, {}, {}
if wanted > 0 and paused == 0 then
  local max_bytes, bytes, full = tonumber(ARGV[9]), 0, false
  local at = 0
  while #ids < wanted and not full do
    local chunk = redis.call('ZRANGE', pending, at, at + math.min(50, wanted - #ids) - 1)
    if #chunk == 0 then
      break
    end
    at = at + #chunk
    local bodies = redis.call('HMGET', k.tasks, unpack(chunk))
    for i, id in ipairs(chunk) do
      local body = bodies[i]
      if not body then
        lost[#lost + 1] = id
      else
        if #ids > 0 and bytes + #body > max_bytes then
          full = true
          break
        end
        bytes = bytes + #body
        ids[#ids + 1] = id
        messages[#messages + 1] = body
      end
    end
  end
  if #ids > 0 then
    local virtual = redis.call('ZSCORE', pending, ids[#ids])
    if tonumber(virtual) > tonumber(redis.call('HGET', meta, 'v') or '0') then
      redis.call('HSET', meta, 'v', virtual)
    end
    redis.call('ZREM', pending, unpack(ids))
    local leases, owners, expiry = {}, {}, whole(now + lease)
    for i, id in ipairs(ids) do
      leases[2 * i - 1], leases[2 * i] = expiry, id
      owners[2 * i - 1], owners[2 * i] = id, token
    end
    redis.call('ZADD', k.active, unpack(leases))
    redis.call('HSET', k.owner, unpack(owners))
  end
  if #lost > 0 then
    redis.call('ZREM', pending, unpack(lost))
    for _, id in ipairs(lost) do
      redis.call('ZADD', dead, whole(now), id)
      redis.call('SPUBLISH', k.done, id)
    end
    unlock(k.unique, now, lost)
    count(k.stats, now, 'dead', #lost)
  end
end
redis.call('HSET', fetches, server, cmsgpack.pack({ number, now, ids }))

-- 4 sweep: as much as was taken and a little more, so that it keeps up with any rate
local most = limit + #ids
local expired = lapsed_before(k.completed, now, most)
if #expired > 0 then
  redis.call('ZREM', k.completed, unpack(expired))
  erase(k, now, expired)
  if #expired == most then
    more = 1
  end
end
local dead_count = redis.call('ZCARD', dead)
if dead_count > 0 then
  local old = lapsed_before(dead, now - tonumber(ARGV[8]), most)
  local excess = dead_count - #old - tonumber(ARGV[7])
  if excess > 0 and #old < most then
    old = redis.call('ZRANGE', dead, 0, math.min(#old + excess, most) - 1)
  end
  if #old > 0 then
    redis.call('ZREM', dead, unpack(old))
    erase(k, now, old)
    count(k.stats, now, 'trimmed', #old)
    if #old == most then
      more = 1
    end
  end
end
if now - tonumber(redis.call('HGET', meta, 'swept') or '0') >= 1000000 then
  redis.call('HSET', meta, 'swept', whole(now))
  if redis.call('EXISTS', k.unique) == 1 then
    local part = redis.call('HSCAN', k.unique, redis.call('HGET', meta, 'cursor') or '0', 'COUNT', limit)
    redis.call('HSET', meta, 'cursor', part[1])
    for i = 1, #part[2], 2 do
      local lock = string.match(part[2][i], '^=(.*)$')
      if lock and not lock_holder(k.unique, now, lock) then
        redis.call('HDEL', k.unique, part[2][i])
      end
    end
  end
  local day = math.floor(now / 86400000000)
  if redis.call('HGET', meta, 'day') ~= tostring(day) then
    redis.call('HSET', meta, 'day', day)
    for _, name in ipairs(redis.call('HKEYS', k.stats)) do
      local of = tonumber(string.match(name, ':(%d+)$') or '')
      if of and of <= day - 90 then
        redis.call('HDEL', k.stats, name)
      end
    end
  end
  local part = redis.call('HSCAN', fetches, '0', 'COUNT', limit)
  for i = 1, #part[2], 2 do
    if now - cmsgpack.unpack(part[2][i + 1])[2] > 3600000000 then
      redis.call('HDEL', fetches, part[2][i])
    end
  end
end

-- 5 wake
local left = redis.call('ZCARD', pending)
if left == 0 then
  redis.call('UNLINK', fairness)
else
  local passed = redis.call('ZRANGEBYSCORE', fairness, '-inf', redis.call('HGET', meta, 'v') or '0', 'LIMIT', 0, limit)
  if #passed > 0 then
    redis.call('ZREM', fairness, unpack(passed))
  end
  if paused == 0 then
    wake(KEYS[18])
  end
end

local next_due
for _, set in ipairs({ scheduled, retry, k.active }) do
  local due = redis.call('ZRANGE', set, 0, 0, 'WITHSCORES')[2]
  if due and (not next_due or tonumber(due) < next_due) then
    next_due = tonumber(due)
  end
end
return {
  whole(now), next_due and whole(math.max(0, next_due - now)) or '-1', more, #recovered, #died,
  ids, messages, beside(k.failures, ids), beside(k.crashes, ids), own, paused,
}
