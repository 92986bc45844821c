-- queue_reads: read data that several steps of a fetch need.

-- Return the lowest score in a set; infinity if the set is empty.
local function lowest_score(set_key)
  return tonumber(redis.call('ZRANGE', set_key, 0, 0, 'WITHSCORES')[2] or '') or math.huge
end

-- Return the first `most` ids whose score is at most `moment`.
local function due_ids(set_key, moment, most)
  return redis.call('ZRANGEBYSCORE', set_key, '-inf', to_text(moment), 'LIMIT', 0, most)
end

-- Return the hash's values for the ids; empty if the hash does not exist.
local function fields_of(hash_key, ids)
  if #ids == 0 or redis.call('EXISTS', hash_key) == 0 then
    return {}
  end
  return redis.call('HMGET', hash_key, unpack(ids))
end

-- Return, with one command, whether a queue without pending tasks needs no upkeep. Two kinds of
-- upkeep can wait, so they are checked only every few minutes: trimming dead tasks, and forgetting
-- the last calls of old senders.
local function is_idle(now, swept, dead_age)
  if math.abs(now - parse_int(swept, 0)) < math.min(300000000, dead_age / 10) then
    return redis.call(
      'EXISTS', KEYS.active, KEYS.scheduled, KEYS.retry, KEYS.completed, KEYS.unique,
      -- flow:
      KEYS.limited, KEYS.openings, KEYS.limits,
      -- end flow
      KEYS.fairness
    ) == 0
  end
  return redis.call(
    'EXISTS', KEYS.active, KEYS.scheduled, KEYS.retry, KEYS.completed, KEYS.unique, KEYS.fairness,
    -- flow:
    KEYS.limited, KEYS.openings, KEYS.limits,
    -- end flow
    KEYS.dead, KEYS.calls, KEYS.recent
  ) == 0
end

-- Return whether the queue has any of the keys that are usually missing. If it has none, one EXISTS
-- command replaces a read of each key. Fails if one of the keys has the wrong type.
local function has_unusual_keys()
  if redis.call(
    'EXISTS', KEYS.scheduled, KEYS.retry, KEYS.completed, KEYS.dead, KEYS.failures, KEYS.crashes,
    KEYS.progress
  ) == 0 then
    return false
  end
  for _, set_key in ipairs({ KEYS.scheduled, KEYS.retry, KEYS.completed, KEYS.dead }) do
    check_set(set_key)
  end
  check_hash(KEYS.failures)
  check_hash(KEYS.crashes)
  check_rights(KEYS.tasks, { 'HDEL', 'ZCARD' })
  return true
end
