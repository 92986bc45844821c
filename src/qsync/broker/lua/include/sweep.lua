-- sweep: what has had its time leaves the queue.

-- The first `most` ids whose score is not above a moment.
local function until_moment(set_key, moment, most)
  return redis.call('ZRANGEBYSCORE', set_key, '-inf', whole(moment), 'LIMIT', 0, most)
end

-- Completed tasks whose retention is over. Returns how many went.
local function sweep_completed(k, now, most)
  local expired = until_moment(k.completed, now, most)
  if #expired > 0 then
    redis.call('ZREM', k.completed, unpack(expired))
    erase(k, now, expired)
  end
  return #expired
end

-- Dead tasks that are too old or too many, the oldest first. Returns how many went.
local function trim_dead(k, now, most, dead_limit, dead_age)
  local total = redis.call('ZCARD', k.dead)
  if total == 0 then
    return 0
  end
  local old = until_moment(k.dead, now - dead_age, most)
  local excess = total - #old - dead_limit
  if excess > 0 and #old < most then
    old = redis.call('ZRANGE', k.dead, 0, math.min(#old + excess, most) - 1)
  end
  if #old > 0 then
    redis.call('ZREM', k.dead, unpack(old))
    erase(k, now, old)
    count(k.stats, now, 'trimmed', #old)
  end
  return #old
end

-- A part of a hash, going round it from call to call: hashes have no order to sweep them by.
local function next_part(hash_key, meta_key, cursor_name, size)
  local cursor = whole(digits(redis.call('HGET', meta_key, cursor_name), 0))
  local part = redis.call('HSCAN', hash_key, cursor, 'COUNT', size)
  redis.call('HSET', meta_key, cursor_name, part[1])
  return part[2]
end

-- Locks that nobody has, and what is kept of the lock of a task that is not there.
local function sweep_locks(k, now, size)
  if redis.call('EXISTS', k.unique) == 0 then
    return
  end
  local part = next_part(k.unique, k.meta, 'cursor', size)
  for i = 1, #part, 2 do
    local kind, name = string.match(part[i], '^([=@])(.*)$')
    local free = kind == '=' and not lock_holder(k.unique, now, name, part[i + 1])
    if free or kind == '@' and redis.call('HEXISTS', k.tasks, name) == 0 then
      redis.call('HDEL', k.unique, part[i])
    end
  end
end

-- The last fetches of servers that have made none for an hour.
local function sweep_fetches(k, now, size)
  local part = next_part(k.fetches, k.meta, 'fetches_cursor', size)
  for i = 1, #part, 2 do
    local time = digits(string.match(part[i + 1], '^%d+ (%d+)'), 0)
    if now - time > 3600000000 then
      redis.call('HDEL', k.fetches, part[i])
    end
  end
end

-- Once a day, the counters of the day that is 90 days back and of those before it.
local function sweep_days(k, now)
  local day = math.floor(now / 86400000000)
  if redis.call('HGET', k.meta, 'day') == whole(day) then
    return
  end
  redis.call('HSET', k.meta, 'day', whole(day))
  for _, name in ipairs(redis.call('HKEYS', k.stats)) do
    local of = digits(string.match(name, ':(%d+)$'))
    if of and of <= day - 90 then
      redis.call('HDEL', k.stats, name)
    end
  end
end

-- What the sets do not show to be over is looked for once a second.
local function sweep_hashes(k, now, size)
  if math.abs(now - digits(redis.call('HGET', k.meta, 'swept'), 0)) < 1000000 then
    return
  end
  redis.call('HSET', k.meta, 'swept', whole(now))
  sweep_locks(k, now, size)
  sweep_fetches(k, now, size)
  sweep_days(k, now)
end
