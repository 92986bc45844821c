-- cancels: how many of the completed tasks ended because somebody cancelled them.

-- Those whose cancel was asked for while they run are noted in the same hash: they are left out. With
-- over 2000 running tasks only the first ones are looked at.
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
