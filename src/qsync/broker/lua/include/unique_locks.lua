-- unique_locks: read, take and release unique locks. `=<lock>` holds `<end of window>:<id>`;
-- `@<id>` holds the lock's name until the task ends. A lock is held until its task has ended and
-- its window is over.

-- Return the end of the window and the holder from a lock's value; nothing if the lock is free or
-- the value invalid.
local function read_lock(held)
  local ends, holder = string.match(held or '', '^(%d+):(.+)$')
  ends = parse_int(ends)
  if ends then
    return ends, holder
  end
end

-- Return the id that currently holds the lock, or false. `held` is the value of `=<lock>`.
local function lock_holder(now, lock, held)
  local ends, holder = read_lock(held)
  if ends and (ends > now or redis.call('HGET', KEYS.unique, '@' .. holder) == lock) then
    return holder
  end
  return false
end

-- Return the fields and values to store for a taken lock; `ends` is 0 if the lock has no window.
local function lock_fields(lock, ends, id)
  return '=' .. lock, to_text(ends) .. ':' .. id, '@' .. id, lock
end

-- Release the locks of ids that ended. A lock whose window is not over stays until a sweep deletes
-- it. If the key is not a hash, there are no locks to release.
local function unlock(now, ids)
  if #ids == 0 or redis.call('EXISTS', KEYS.unique) == 0 then
    return
  end
  local fields = {}
  for i, id in ipairs(ids) do
    fields[i] = '@' .. id
  end
  local locks = redis.pcall('HMGET', KEYS.unique, unpack(fields))
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
  for i, held in ipairs(redis.call('HMGET', KEYS.unique, unpack(names))) do
    local ends, holder = read_lock(held)
    if holder == of[i].id and ends <= now then
      free[#free + 1] = names[i]
    end
  end
  redis.call('HDEL', KEYS.unique, unpack(free))
end
