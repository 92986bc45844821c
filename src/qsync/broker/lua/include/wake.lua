-- wake: one element in the list wakes one server with a free slot.

local function wake(wake_key)
  if redis.call('LLEN', wake_key) == 0 then
    redis.call('LPUSH', wake_key, '1')
  end
end
