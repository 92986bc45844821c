-- waiting_tasks: how many tasks wait for a limit.

-- Return the number of limited tasks whose entry is under this limit.
local function waiting_tasks(limit)
  return redis.call('ZLEXCOUNT', KEYS.waiters, '[' .. limit .. '\0', '(' .. limit .. '\1')
end
