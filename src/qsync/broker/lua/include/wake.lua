-- wake: one element in the list wakes one server with a free slot.

-- Where servers wait there is no element, so it is not asked first: a kind of command that the store
-- has not run for a while takes it 10 us.
local function wake(wake_key)
  if redis.call('LPUSH', wake_key, '1') > 1 then
    redis.call('LPOP', wake_key)
  end
end
