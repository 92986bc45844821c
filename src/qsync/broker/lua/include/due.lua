-- due: tasks that wait for their time.

-- Put ids into scheduled or retry; `args` holds due time and id in turn. Wakes a server when the
-- first of them is due earlier than any was before.
local function put_due(set_key, wake_key, idle_key, args)
  if #args == 0 then
    return
  end
  local before = redis.call('ZRANGE', set_key, 0, 0, 'WITHSCORES')[2]
  redis.call('ZADD', set_key, unpack(args))
  local after = redis.call('ZRANGE', set_key, 0, 0, 'WITHSCORES')[2]
  if not before or tonumber(after) < tonumber(before) then
    wake(wake_key, idle_key)
  end
end
