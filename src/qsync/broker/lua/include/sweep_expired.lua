-- sweep_expired: delete expired data of the queue.

-- Delete completed tasks whose retention is over. Returns the number of deleted tasks.
local function sweep_completed(now, most)
  local expired = due_ids(KEYS.completed, now, most)
  if #expired > 0 then
    check_hash(KEYS.tasks)
    check_rights(KEYS.tasks, { 'HDEL' })
    redis.call('ZREM', KEYS.completed, unpack(expired))
    forget_tasks(now, expired)
  end
  return #expired
end

-- Delete dead tasks that are too old, and the oldest ones if there are too many. Returns the number
-- of deleted tasks.
local function trim_dead(now, most, dead_limit, dead_age)
  local total = redis.call('ZCARD', KEYS.dead)
  if total == 0 then
    return 0
  end
  local old = due_ids(KEYS.dead, now - dead_age, most)
  local excess = total - #old - dead_limit
  if excess > 0 and #old < most then
    old = redis.call('ZRANGE', KEYS.dead, 0, math.min(#old + excess, most) - 1)
  end
  if #old > 0 then
    check_hash(KEYS.tasks)
    check_rights(KEYS.tasks, { 'HDEL' })
    redis.call('ZREM', KEYS.dead, unpack(old))
    forget_tasks(now, old)
    count(now, 'trimmed', #old)
  end
  return #old
end

-- Maximum number of remembered ids per queue; the ids that expire first are deleted first.
local recent_most = 250000

-- Delete remembered ids that have expired, and the first ones to expire if there are more than
-- `recent_most`. Returns whether there may be more to delete.
local function sweep_recent(now, most)
  local total = redis.pcall('ZCARD', KEYS.recent)
  if type(total) ~= 'number' or total == 0 then
    return false
  end
  local old = due_ids(KEYS.recent, now, most)
  local excess = total - #old - recent_most
  if excess > 0 and #old < most then
    old = redis.call('ZRANGE', KEYS.recent, 0, math.min(#old + excess, most) - 1)
  end
  if #old > 0 then
    redis.call('ZREM', KEYS.recent, unpack(old))
  end
  return #old == most
end

-- Scan a part of a hash and delete the entries for which `is_over(field, value)` is true. Hashes
-- are not ordered by age, so each call continues where the last one stopped. Returns the next
-- cursor, whether the next call should continue without a pause, and the number of deleted entries.
-- The next call should do so if the scan has not ended and an eighth or more of this part was
-- deleted.
local function sweep_part(hash_key, cursor, size, is_over)
  local reply = redis.pcall('HSCAN', hash_key, to_text(parse_int(cursor, 0)), 'COUNT', size)
  if reply.err then
    return '0', false, 0
  end
  local part, over = reply[2], {}
  for i = 1, math.min(#part, 4000), 2 do
    if is_over(part[i], part[i + 1]) then
      over[#over + 1] = part[i]
    end
  end
  if #over > 0 then
    redis.pcall('HDEL', hash_key, unpack(over))
  end
  return reply[1], reply[1] ~= '0' and #over * 8 >= #part, #over
end

-- Delete locks that have no holder, and the lock names of tasks that do not exist.
local function sweep_locks(now, cursor, size)
  return sweep_part(KEYS.unique, cursor, size, function(field, value)
    local kind, name = string.match(field, '^([=@])(.*)$')
    if kind == '=' then
      return not lock_holder(now, name, value)
    end
    return kind == '@' and redis.call('HEXISTS', KEYS.tasks, name) == 0
  end)
end

-- Delete records (`<number> <time us> ...`) older than `age`.
local function sweep_records(hash_key, now, cursor, size, age)
  return sweep_part(hash_key, cursor, size, function(_, value)
    return now - parse_int(string.match(value, '^%d+ (%d+)'), 0) > age
  end)
end

-- flow:
-- Delete the states of limits that no task uses, once their `tat` and the end of their closing have
-- passed. If the clock was set back, the next start of a limit may be further ahead than its rule
-- allows. Such a start is corrected, but rules are read only for starts that are over 10 s ahead.
local function sweep_limits(now, cursor, size)
  local ahead = {}
  local next_cursor, more, gone = sweep_part(KEYS.limits, cursor, size, function(limit, value)
    local use, ready, tat, closed, waiters = string.match(value, '^(%d+) (%d+) (%d+) (%d+)(.*)$')
    if tonumber(tat or 0) - now > 10000000 then
      ahead[#ahead + 1] = limit
    end
    return use == '0' and ready == '0' and waiters == ''
      and math.max(tonumber(tat), tonumber(closed)) <= now
  end)
  return next_cursor, correct_starts(ahead) or more, gone
end

-- end flow
-- Once a day, delete the daily counters that are 90 days old or older.
local function sweep_days(now, swept)
  local today = math.floor(now / 86400000000)
  if swept == to_text(today) then
    return
  end
  redis.call('HSET', KEYS.meta, 'day', to_text(today))
  for _, name in ipairs(redis.pcall('HKEYS', KEYS.stats)) do
    local of = parse_int(string.match(name, ':(%d+)$'))
    if of and of <= today - 90 then
      redis.pcall('HDEL', KEYS.stats, name)
    end
  end
end

-- Delete expired entries from the hashes, at most once per second unless there was more to delete.
-- The record of a server's last fetch is kept for an hour, and that of a sender's last enqueue for
-- ten minutes. No call is retried for that long. `swept` is the time in `meta`; `trimming` tells
-- whether there are more dead tasks to delete, and `busy` whether this call fetched tasks. If it
-- fetched none and no entry has expired, nothing is written. Returns whether there is more to
-- delete.
local function sweep_hashes(now, size, swept, trimming, busy)
  if not trimming and math.abs(now - parse_int(swept, 0)) < 1000000 then
    return false
  end
  local noted = redis.call('HMGET', KEYS.meta, 'day', 'cursor', 'fetches_cursor', 'calls_cursor')
  local locks_at, locks, gone = sweep_locks(now, noted[2], size)
  local fetches_at, fetches, forgotten =
    sweep_records(KEYS.fetches, now, noted[3], size, 3600000000)
  local calls_at, calls, past = sweep_records(KEYS.calls, now, noted[4], size, 600000000)
  -- flow:
  local limits_cursor = redis.call('HGET', KEYS.meta, 'limits_cursor') or '0'
  local limits_at, limits, unused = sweep_limits(now, limits_cursor, size)
  past, calls = past + unused, calls or limits
  if limits_at ~= limits_cursor then
    redis.call('HSET', KEYS.meta, 'limits_cursor', limits_at)
  end
  -- end flow
  local recent = sweep_recent(now, 5 * size)
  local more = trimming or locks or fetches or calls or recent
  busy = busy or parse_int(swept, 0) > now
  local round = { locks_at, fetches_at, calls_at, noted[2], noted[3], noted[4] }
  for at = 1, 6 do
    busy = busy or (round[at] or '0') ~= '0'
  end
  if not (busy or more) and gone + forgotten + past == 0 then
    return false
  end
  redis.call(
    'HSET', KEYS.meta, 'swept', more and '0' or to_text(now),
    'cursor', locks_at, 'fetches_cursor', fetches_at, 'calls_cursor', calls_at
  )
  sweep_days(now, noted[1])
  return more
end

-- Delete expired data. `leased` is the number of tasks that the fetch leased, and `swept` is the
-- time of the last sweep, from `meta`. `unusual` tells whether there may be completed or dead
-- tasks. Returns whether there is more to delete.
local function sweep_expired(now, limit, leased, swept, unusual, dead_limit, dead_age)
  local most, more, trimming = limit + leased, false, false
  if unusual then
    more = sweep_completed(now, most) == most
    trimming = trim_dead(now, most, dead_limit, dead_age) == most
  end
  return sweep_hashes(now, limit, swept, trimming, leased > 0) or more
end
