-- since: when a task became runnable, where that is neither its enqueue nor a due time in its
-- records. It stands in the hash of progress, as @<us>, until the handler tells its progress. It
-- decides nothing, so what the store refuses is left out.

-- What is stored for ids, progress too; empty where nothing is.
local function read_since(progress_key, ids)
  if #ids == 0 or redis.call('EXISTS', progress_key) == 0 then
    return {}
  end
  local found = redis.pcall('HMGET', progress_key, unpack(ids))
  return found.err and {} or found
end
