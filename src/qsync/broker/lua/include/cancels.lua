-- cancels: count the completed tasks that were cancelled.

-- The hash also has the cancel requests of active tasks, which are subtracted. Only the first 2000
-- active tasks are checked.
local function count_cancelled(active_key, completed_key, cancels_key)
  local noted = redis.call('HLEN', cancels_key)
  if noted == 0 then
    return 0
  end
  local ids = redis.call('ZRANGE', active_key, 0, 1999)
  if #ids > 0 then
    for _, asked in ipairs(redis.call('HMGET', cancels_key, unpack(ids))) do
      noted = noted - (asked and 1 or 0)
    end
  end
  return math.min(noted, redis.call('ZCARD', completed_key))
end
