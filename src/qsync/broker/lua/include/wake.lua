-- wake: wakes one server with a free slot: first one that has asked for a message on its channel, and
-- without any the list, on which others block. A wake that the store refuses costs time only: a
-- server looks at the queue again within its sweep.

-- Send a message to the idle server that has waited longest; false when there is none, or the user
-- may not. A server that does not hear it is forgotten.
local function call_idle(wake_key, idle_key)
  while true do
    local first = redis.pcall('ZRANGE', idle_key, 0, 0)
    local server = first[1]
    if not server then
      return false
    end
    local heard = redis.pcall('SPUBLISH', table.concat({ wake_key, ':', server }), '1')
    if type(heard) ~= 'number' then
      return false
    end
    local removed = redis.pcall('ZREM', idle_key, server)
    if heard > 0 or removed ~= 1 then
      return heard > 0
    end
  end
end

-- Where servers block there is no element, so it is not asked first: a kind of command that the store
-- has not run for a while takes it 10 us.
local function wake(wake_key, idle_key)
  if call_idle(wake_key, idle_key) then
    return
  end
  local length = redis.pcall('LPUSH', wake_key, '1')
  if type(length) == 'number' and length > 1 then
    redis.pcall('LPOP', wake_key)
  end
end
