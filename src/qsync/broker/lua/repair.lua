#!lua flags=allow-oom
-- repair: repair damage that an audit found and that is still there.
-- A task without a state becomes dead, so that it is not lost and does not run twice; one that a
-- server owns becomes active.
-- include: schema guard clock count lock ended erase recover
-- KEYS[1] tasks      hash    id -> message
-- KEYS[2] pending    zset    ids by order tag
-- KEYS[3] scheduled  zset    ids by due time
-- KEYS[4] active     zset    ids by lease expiry
-- KEYS[5] retry      zset    ids by due time
-- KEYS[6] completed  zset    ids by end of retention
-- KEYS[7] dead       zset    ids by time of death
-- KEYS[8] owner      hash    id -> lease token
-- KEYS[9] crashes    hash    id -> crash count
-- KEYS[10] failures  hash    id -> failure record
-- KEYS[11] results   hash    id -> result record
-- KEYS[12] keys      hash    id -> fairness key
-- KEYS[13] cancels   hash    id -> retention us
-- KEYS[14] progress  hash    id -> done/total, or @<us> at which it became runnable
-- KEYS[15] unique    hash    locks
-- KEYS[16] stats     hash    counters
-- KEYS[17] wake      list
-- KEYS[18] done      channel of ended tasks
-- KEYS[19] meta      hash    schema
-- ARGV[1] now        int us  empty: the store's clock
-- ARGV[2] damage     text    kind of the damage
-- ARGV[3] record     bytes   failure record for tasks that become dead
-- ARGV[4] lease      int us  lease of a task that has an owner and no state
-- ARGV[5...] two values per task: id, lock
-- returns one per task: ok | changed
local k = {
  tasks = KEYS[1], pending = KEYS[2], scheduled = KEYS[3], active = KEYS[4], retry = KEYS[5],
  completed = KEYS[6], dead = KEYS[7], owner = KEYS[8], crashes = KEYS[9], failures = KEYS[10],
  results = KEYS[11], keys = KEYS[12], cancels = KEYS[13], progress = KEYS[14], unique = KEYS[15],
  stats = KEYS[16], wake = KEYS[17], done = KEYS[18],
}
check_schema(KEYS[19])
local now = clock(ARGV[1])

check_rights(k.tasks, { 'ZADD', 'ZREM', 'HSET', 'HDEL', 'HMGET', 'EXISTS' })

local function is_unfinished(id)
  for _, set_key in ipairs({ k.active, k.pending, k.retry, k.scheduled }) do
    if redis.call('ZSCORE', set_key, id) then
      return true
    end
  end
  return false
end

local function is_placed(id)
  return is_unfinished(id)
    or redis.call('ZSCORE', k.dead, id)
    or redis.call('ZSCORE', k.completed, id)
end

local function has(hash_key, id)
  return redis.call('HEXISTS', hash_key, id) == 1
end

local mend = {}

-- Keep the task only in the first of its states in this order, which puts unfinished states first.
mend['several states'] = function(id)
  for _, set_key in ipairs({
    k.active, k.pending, k.retry, k.scheduled, k.dead, k.completed,
  }) do
    check_set(set_key)
  end
  local kept, taken = false, 0
  for _, set_key in ipairs({
    k.active, k.pending, k.retry, k.scheduled, k.dead, k.completed,
  }) do
    if kept then
      taken = taken + redis.call('ZREM', set_key, id)
    else
      kept = redis.call('ZSCORE', set_key, id)
    end
  end
  return taken > 0
end

mend['no state'] = function(id)
  if is_placed(id) or not has(k.tasks, id) then
    return false
  end
  if has(k.owner, id) then
    redis.call('ZADD', k.active, whole(now + tonumber(ARGV[4])), id)
  else
    check_hash(k.failures)
    to_dead(k, now, { id })
    redis.call('HSET', k.failures, id, ARGV[3])
  end
  return true
end

mend['no message'] = function(id)
  if has(k.tasks, id) or not is_unfinished(id) then
    return false
  end
  check_set(k.dead)
  check_hash(k.owner)
  for _, set_key in ipairs({ k.pending, k.retry, k.scheduled, k.active }) do
    check_set(set_key)
  end
  for _, set_key in ipairs({ k.pending, k.retry, k.scheduled }) do
    redis.call('ZREM', set_key, id)
  end
  release(k, { id })
  to_dead(k, now, { id })
  return true
end

mend['not leased'] = function(id)
  if redis.call('ZSCORE', k.active, id) or not has(k.owner, id) or not is_placed(id) then
    return false
  end
  return redis.call('HDEL', k.owner, id) == 1
end

-- Give the task an owner whose lease expires now, so that it is recovered like any other task.
mend['not owned'] = function(id)
  if has(k.owner, id) or not redis.call('ZSCORE', k.active, id) then
    return false
  end
  redis.call('HSET', k.owner, id, 'audit/0')
  redis.call('ZADD', k.active, 'XX', whole(now), id)
  return true
end

mend['leftover'] = function(id)
  if is_placed(id) or has(k.tasks, id) then
    return false
  end
  local gone = 0
  for _, hash_key in ipairs({
    k.owner, k.crashes, k.failures, k.results, k.keys, k.cancels, k.progress,
  }) do
    check_hash(hash_key)
  end
  for _, hash_key in ipairs({
    k.owner, k.crashes, k.failures, k.results, k.keys, k.cancels, k.progress,
  }) do
    gone = gone + redis.call('HDEL', hash_key, id)
  end
  return gone > 0
end

mend['lock kept'] = function(id)
  if is_unfinished(id) or not has(k.unique, '@' .. id) then
    return false
  end
  unlock(k.unique, now, { id })
  return true
end

mend['lock lost'] = function(id)
  local lock = redis.call('HGET', k.unique, '@' .. id)
  if not lock or not is_unfinished(id) then
    return false
  end
  local held = redis.call('HGET', k.unique, '=' .. lock)
  if lock_holder(k.unique, now, lock, held) then
    return false
  end
  redis.call('HSET', k.unique, lock_fields(lock, 0, id))
  return true
end

mend['lock unkept'] = function(id, lock)
  local _, holder = read_lock(redis.call('HGET', k.unique, '=' .. lock))
  if holder ~= id or has(k.unique, '@' .. id) or not is_unfinished(id) then
    return false
  end
  redis.call('HSET', k.unique, '@' .. id, lock)
  return true
end

mend['strange lock'] = function(_, lock)
  if string.find(lock, '^[=@]') then
    return false
  end
  return redis.call('HDEL', k.unique, lock) == 1
end

mend['several wakes'] = function()
  if redis.call('LLEN', k.wake) < 2 then
    return false
  end
  redis.call('LTRIM', k.wake, 0, 0)
  return true
end

local replies = {}
for i = 5, #ARGV, 2 do
  replies[#replies + 1] = mend[ARGV[2]](ARGV[i], ARGV[i + 1]) and 'ok' or 'changed'
end
publish_ended(k.done)
return replies
