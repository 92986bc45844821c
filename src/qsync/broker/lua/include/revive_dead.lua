-- revive_dead: restore the lock and the attempts of a dead task before it runs again.

-- Take the lock of a dead task; if another task holds it, return that task's id.
local function take_lock(now, id, lock)
  local held = redis.call('HGET', KEYS.unique, '=' .. lock)
  local holder = lock_holder(now, lock, held)
  if holder and holder ~= id then
    return holder
  end
  -- If the task itself still holds the lock, the end of the lock's window stays the same.
  local ends = holder and read_lock(held) or 0
  redis.call('HSET', KEYS.unique, lock_fields(lock, ends, id))
end

-- Give a task all its attempts again. `record` is the failure record to keep; if it is empty, no
-- record is kept.
local function revive(id, key, record)
  redis.call('HDEL', KEYS.crashes, id)
  if record == '' then
    redis.call('HDEL', KEYS.failures, id)
  else
    redis.call('HSET', KEYS.failures, id, record)
  end
  if key ~= '' then
    redis.call('HSET', KEYS.keys, id, key)
  end
end
