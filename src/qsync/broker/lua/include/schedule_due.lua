-- schedule_due: put tasks into `scheduled` or `retry`.

-- Add ids to a set; `args` alternates due times and ids. If one of these ids now has the earliest
-- due time, wake a server, since servers sleep until the earliest due time that they have seen.
local function schedule_due(set_key, args)
  if #args == 0 then
    return
  end
  local before = redis.call('ZRANGE', set_key, 0, 0, 'WITHSCORES')[2]
  redis.call('ZADD', set_key, unpack(args))
  local after = redis.call('ZRANGE', set_key, 0, 0, 'WITHSCORES')[2]
  if not before or tonumber(after) < tonumber(before) then
    wake_server()
  end
end
