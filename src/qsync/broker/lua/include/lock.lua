-- lock: unique locks. `=<lock>` holds `<end of window>:<id>`; `@<id>` holds the lock's name for as
-- long as the task is unfinished. A lock is taken while its task is unfinished or its window runs.

-- End of window and holder in what a lock holds; nothing when it is free or cannot be read.
local function read_lock(held)
  local ends, holder = string.match(held or '', '^(%d+):(.+)$')
  ends = digits(ends)
  if ends then
    return ends, holder
  end
end

-- The id that has the lock now, or false. `held` is what `=<lock>` holds.
local function lock_holder(unique_key, now, lock, held)
  local ends, holder = read_lock(held)
  if ends and (ends > now or redis.call('HGET', unique_key, '@' .. holder) == lock) then
    return holder
  end
  return false
end

-- Fields and values to store for a lock that is taken, `ends` 0 for one without a window.
local function lock_fields(lock, ends, id)
  return '=' .. lock, whole(ends) .. ':' .. id, '@' .. id, lock
end

-- Free the locks of ids that ended. One whose window still runs stays until it is swept. When there
-- is something else under the key, no lock can hold.
local function unlock(unique_key, now, ids)
  if #ids == 0 or redis.call('EXISTS', unique_key) == 0 then
    return
  end
  local fields = {}
  for i, id in ipairs(ids) do
    fields[i] = '@' .. id
  end
  local locks = redis.pcall('HMGET', unique_key, unpack(fields))
  if locks.err then
    return
  end
  local free, of = {}, {}
  for i, lock in ipairs(locks) do
    if lock then
      free[#free + 1] = fields[i]
      of[#of + 1] = { id = ids[i], name = '=' .. lock }
    end
  end
  if #of == 0 then
    return
  end
  local names = {}
  for i, lock in ipairs(of) do
    names[i] = lock.name
  end
  for i, held in ipairs(redis.call('HMGET', unique_key, unpack(names))) do
    local ends, holder = read_lock(held)
    if holder == of[i].id and ends <= now then
      free[#free + 1] = names[i]
    end
  end
  redis.call('HDEL', unique_key, unpack(free))
end
