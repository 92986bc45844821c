-- wake: one element in the list wakes one server with a free slot. A wake that the store refuses
-- costs time only: a server looks at the queue again within its sweep.

-- Where servers wait there is no element, so it is not asked first: a kind of command that the store
-- has not run for a while takes it 10 us.
local function wake(wake_key)
  local length = redis.pcall('LPUSH', wake_key, '1')
  if type(length) == 'number' and length > 1 then
    redis.pcall('LPOP', wake_key)
  end
end
