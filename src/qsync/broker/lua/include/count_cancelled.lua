-- count_cancelled: count the completed tasks that were cancelled.

-- The hash `cancels` also holds the cancel requests of active tasks, so these are subtracted. Only
-- the first 2000 active tasks are checked.
local function count_cancelled()
  local noted = redis.call('HLEN', KEYS.cancels)
  if noted == 0 then
    return 0
  end
  local ids = redis.call('ZRANGE', KEYS.active, 0, 1999)
  if #ids > 0 then
    for _, asked in ipairs(redis.call('HMGET', KEYS.cancels, unpack(ids))) do
      noted = noted - (asked and 1 or 0)
    end
  end
  return math.min(noted, redis.call('ZCARD', KEYS.completed))
end
