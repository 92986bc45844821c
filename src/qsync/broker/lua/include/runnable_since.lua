-- runnable_since: read the time at which a task became runnable, if it is neither the enqueue time
-- nor a due time in the task's records. The progress hash holds this time as @<us> until the
-- handler reports progress. No decision depends on the time, so errors from the store are ignored.

-- Return the values stored for ids: times, or progress. Return an empty table if the hash does not
-- exist.
local function read_since(ids)
  if #ids == 0 or redis.call('EXISTS', KEYS.progress) == 0 then
    return {}
  end
  local found = redis.pcall('HMGET', KEYS.progress, unpack(ids))
  return found.err and {} or found
end
