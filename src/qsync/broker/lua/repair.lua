#!lua flags=allow-oom
-- repair: repair damage that an audit found, if it still exists.
-- A task without a state becomes dead, so that it is not lost and does not run twice. If a server
-- owns the task, the task becomes active instead.
-- include: check_schema preconditions ensure_schema clock wake_server
-- include: message_limits limit_states waiter_entries limit_waiters
-- include: limit_counts
-- include: counters unique_locks ended_tasks forget_tasks recover_expired
-- include: schedule_due note_runnable message_bytes successors start_successors
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
-- KEYS[20] stored_schedules hash  schedules that clients put
-- KEYS[21] next_ticks zset   these schedules by next tick, us
-- KEYS[22] limited   zset    ids by order tag
-- KEYS[23] waiters   zset    limit and id of each limited task
-- KEYS[24] holds     hash    id -> its limits, of unfinished tasks
-- KEYS[25] limits    hash    limit -> its state
-- KEYS[26] limit_rules hash    name -> its rule
-- KEYS[27] openings  zset    limits by the time at which they open, us
-- KEYS[28] idle      zset    ids of servers that a message wakes
-- KEYS[29] successors hash   id -> due us, member and message of its next run
-- ARGV[1] now        int us  empty: the store's clock
-- ARGV[2] damage     text    kind of the damage
-- ARGV[3] record     bytes   failure record for tasks that become dead
-- ARGV[4] lease      int us  lease of a task that has an owner and no state
-- ARGV[5...] two values per task: id, lock; the id may be the name of a stored schedule
-- returns one outcome per task: ok | changed
check_schema()
local now = clock(ARGV.now)

check_rights(KEYS.tasks, { 'ZADD', 'ZREM', 'HSET', 'HDEL', 'HMGET', 'EXISTS' })
begin_limits(now)

local function is_unfinished(id)
  for _, set_key in ipairs({ KEYS.active, KEYS.pending, KEYS.limited, KEYS.retry, KEYS.scheduled }) do
    if redis.call('ZSCORE', set_key, id) then
      return true
    end
  end
  return false
end

local function is_placed(id)
  return is_unfinished(id)
    or redis.call('ZSCORE', KEYS.dead, id)
    or redis.call('ZSCORE', KEYS.completed, id)
end

local function has(hash_key, id)
  return redis.call('HEXISTS', hash_key, id) == 1
end

local mend = {}

-- Keep the task only in the first of its states in this order, which puts unfinished states first.
mend['several states'] = function(id)
  for _, set_key in ipairs({
    KEYS.active, KEYS.pending, KEYS.limited, KEYS.retry, KEYS.scheduled, KEYS.dead, KEYS.completed,
  }) do
    check_set(set_key)
  end
  local kept, taken = false, 0
  for _, set_key in ipairs({
    KEYS.active, KEYS.pending, KEYS.limited, KEYS.retry, KEYS.scheduled, KEYS.dead, KEYS.completed,
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
  if is_placed(id) or not has(KEYS.tasks, id) then
    return false
  end
  if has(KEYS.owner, id) then
    redis.call('ZADD', KEYS.active, to_text(now + tonumber(ARGV.lease)), id)
  else
    check_hash(KEYS.failures)
    make_dead(now, { id })
    redis.call('HSET', KEYS.failures, id, ARGV.record)
  end
  return true
end

mend['no message'] = function(id)
  if has(KEYS.tasks, id) or not is_unfinished(id) then
    return false
  end
  check_set(KEYS.dead)
  check_hash(KEYS.owner)
  for _, set_key in ipairs({ KEYS.pending, KEYS.limited, KEYS.retry, KEYS.scheduled, KEYS.active }) do
    check_set(set_key)
  end
  if redis.call('ZSCORE', KEYS.active, id) then
    release_leases({ id })
  elseif redis.call('ZSCORE', KEYS.pending, id) then
    release_ready({ id })
  end
  for _, set_key in ipairs({ KEYS.pending, KEYS.limited, KEYS.retry, KEYS.scheduled }) do
    redis.call('ZREM', set_key, id)
  end
  redis.call('HDEL', KEYS.owner, id)
  make_dead(now, { id })
  return true
end

mend['not leased'] = function(id)
  if redis.call('ZSCORE', KEYS.active, id) or not has(KEYS.owner, id) or not is_placed(id) then
    return false
  end
  return redis.call('HDEL', KEYS.owner, id) == 1
end

-- Give the task an owner whose lease expires now, so that it is recovered like any other task.
mend['not owned'] = function(id)
  if has(KEYS.owner, id) or not redis.call('ZSCORE', KEYS.active, id) then
    return false
  end
  redis.call('HSET', KEYS.owner, id, 'audit/0')
  redis.call('ZADD', KEYS.active, 'XX', to_text(now), id)
  return true
end

mend['leftover'] = function(id)
  if is_placed(id) or has(KEYS.tasks, id) then
    return false
  end
  local gone = 0
  for _, hash_key in ipairs({
    KEYS.owner, KEYS.crashes, KEYS.failures, KEYS.results, KEYS.keys, KEYS.cancels, KEYS.progress,
    KEYS.holds, KEYS.successors,
  }) do
    check_hash(hash_key)
  end
  for _, hash_key in ipairs({
    KEYS.owner, KEYS.crashes, KEYS.failures, KEYS.results, KEYS.keys, KEYS.cancels, KEYS.progress,
    KEYS.holds, KEYS.successors,
  }) do
    gone = gone + redis.call('HDEL', hash_key, id)
  end
  return gone > 0
end

-- Start the next run, which replaced a task while it was active. The next run holds no unique lock.
mend['next run kept'] = function(id)
  if is_unfinished(id) or not is_placed(id) or not has(KEYS.successors, id) then
    return false
  end
  local found = split_successors({ 1 }, { id })
  if #found.ids == 0 then
    return redis.call('HDEL', KEYS.successors, id) == 1
  end
  for _, hash_key in ipairs({ KEYS.results, KEYS.failures }) do
    check_hash(hash_key)
  end
  check_set(KEYS.completed)
  check_set(KEYS.dead)
  redis.call('ZREM', KEYS.completed, id)
  redis.call('ZREM', KEYS.dead, id)
  redis.call('HDEL', KEYS.results, id)
  start_successors(found)
  return true
end

mend['layout lost'] = function()
  if check_schema() and redis.call('HGET', KEYS.meta, 'schema') == newest_schema then
    return false
  end
  lift_schema()
  return true
end

-- Count the holders of a limit again.
local holds_counted
mend['limit count'] = function(limit)
  holds_counted = holds_counted or count_holds()
  local state, count = touch_limit(limit), holds_counted and holds_counted[limit]
  count = count or { use = 0, ready = 0 }
  if not holds_counted or state.use == count.use and state.ready == count.ready then
    return false
  end
  state.use, state.ready = count.use, count.ready
  return true
end

-- Mark the limit as touched, so that settle_limits moves its waiters or stores the time at which it
-- opens.
mend['limit shut'] = function(limit)
  local state = touch_limit(limit)
  return has_waiter(limit, state) and not is_limit_full(state)
    and not redis.call('ZSCORE', KEYS.openings, limit)
end

mend['not listed'] = function(id)
  local tag = redis.call('ZSCORE', KEYS.limited, id)
  if not tag then
    return false
  end
  remove_waiters({ id })
  redis.call('ZREM', KEYS.limited, id)
  local message = redis.call('HGET', KEYS.tasks, id)
  for _, limit in ipairs(limits_of_message(message)) do
    if touch_limit(limit).stored == 2 then
      redis.call('ZADD', KEYS.waiters, 0, table.concat({ limit, '\0' }))
    end
  end
  hold_limits_of(id, message)
  add_pending({ tag, id })
  return true
end

mend['stray waiter'] = function(entry)
  local limit = string.match(entry, '^[^%z]*')
  local item, state = string.sub(entry, #limit + 2), touch_limit(limit)
  if item == '' and state.from <= #state.items then
    return false
  end
  local was_listed = remove_item(limit, state, waiter_items.id(item)) ~= nil
  return redis.call('ZREM', KEYS.waiters, entry) == 1 or was_listed
end

mend['hold kept'] = function(id)
  if is_unfinished(id) and not redis.call('ZSCORE', KEYS.limited, id) then
    return false
  end
  return redis.call('HDEL', KEYS.holds, id) == 1
end

-- Restore the limits that a task holds, and count the task for them.
mend['hold lost'] = function(id)
  if has(KEYS.holds, id) or not is_unfinished(id) or redis.call('ZSCORE', KEYS.limited, id) then
    return false
  end
  local message = redis.call('HGET', KEYS.tasks, id)
  if #limits_of_message(message) == 0 then
    return false
  end
  limits_used = true
  hold_limits_of(id, message)
  local tag = redis.call('ZSCORE', KEYS.pending, id)
  if tag then
    redis.call('ZREM', KEYS.pending, id)
    add_pending({ tag, id })
  elseif redis.call('ZSCORE', KEYS.active, id) then
    for _, limit in ipairs(held_limits[id] or {}) do
      local state = touch_limit(limit)
      state.use = state.use + 1
    end
  end
  return true
end

mend['lock kept'] = function(id)
  if is_unfinished(id) or not has(KEYS.unique, '@' .. id) then
    return false
  end
  unlock(now, { id })
  return true
end

mend['lock lost'] = function(id)
  local lock = redis.call('HGET', KEYS.unique, '@' .. id)
  if not lock or not is_unfinished(id) then
    return false
  end
  local held = redis.call('HGET', KEYS.unique, '=' .. lock)
  if lock_holder(now, lock, held) then
    return false
  end
  redis.call('HSET', KEYS.unique, lock_fields(lock, 0, id))
  return true
end

mend['lock unkept'] = function(id, lock)
  local _, holder = read_lock(redis.call('HGET', KEYS.unique, '=' .. lock))
  if holder ~= id or has(KEYS.unique, '@' .. id) or not is_unfinished(id) then
    return false
  end
  redis.call('HSET', KEYS.unique, '@' .. id, lock)
  return true
end

mend['strange lock'] = function(_, lock)
  if string.find(lock, '^[=@]') then
    return false
  end
  return redis.call('HDEL', KEYS.unique, lock) == 1
end

mend['several wakes'] = function()
  if redis.call('LLEN', KEYS.wake) < 2 then
    return false
  end
  redis.call('LTRIM', KEYS.wake, 0, 0)
  return true
end

-- Make the schedule due now, so that a server reads it and sets its next tick.
mend['no tick'] = function(id)
  if not has(KEYS.stored_schedules, id) or redis.call('ZSCORE', KEYS.next_ticks, id) then
    return false
  end
  redis.call('ZADD', KEYS.next_ticks, to_text(now), id)
  return true
end

local replies = {}
for i = 5, #ARGV, 2 do
  replies[#replies + 1] = mend[ARGV.damage](ARGV[i], ARGV[i + 1]) and 'ok' or 'changed'
end
if settle_limits() then
  wake_server()
end
publish_ended()
return replies
