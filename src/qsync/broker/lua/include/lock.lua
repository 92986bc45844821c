-- lock: unique locks. `=<lock>` holds `<end of window>:<id>`; `@<id>` holds the lock's name for as
-- long as the task is unfinished. A lock is taken while its task is unfinished or its window runs.

-- Free the locks of ids that ended. One whose window still runs stays until it is swept.
local function unlock(unique_key, now, ids)
  if #ids == 0 or redis.call('EXISTS', unique_key) == 0 then
    return
  end
  for _, id in ipairs(ids) do
    local lock = redis.call('HGET', unique_key, '@' .. id)
    if lock then
      redis.call('HDEL', unique_key, '@' .. id)
      local held = redis.call('HGET', unique_key, '=' .. lock)
      if held then
        local ends, holder = string.match(held, '^(%d+):(.*)$')
        if holder == id and tonumber(ends) <= now then
          redis.call('HDEL', unique_key, '=' .. lock)
        end
      end
    end
  end
end

-- The id that holds the lock now, or false.
local function lock_holder(unique_key, now, lock)
  local held = redis.call('HGET', unique_key, '=' .. lock)
  if not held then
    return false
  end
  local ends, holder = string.match(held, '^(%d+):(.*)$')
  if tonumber(ends) > now then
    return holder
  end
  if redis.call('HGET', unique_key, '@' .. holder) == lock then
    return holder
  end
  return false
end

local function take_lock(unique_key, now, lock, window, id)
  local ends = window > 0 and now + window or 0
  redis.call('HSET', unique_key, '=' .. lock, whole(ends) .. ':' .. id, '@' .. id, lock)
end
