-- wake_server: wake one server with a free slot. If an idle server waits for a message on its
-- channel, wake that server. Otherwise, wake a server that blocks on the wake list. If the store
-- refuses a command, the work is only delayed, since servers check the queue regularly.

-- Send a message to the idle server that has waited longest, and remove this server from the set.
-- If the server does not receive the message, try the next server. Returns false if there is no
-- idle server or the user may not publish.
local function message_idle_server()
  while true do
    local first = redis.pcall('ZRANGE', KEYS.idle, 0, 0)
    local server = first[1]
    if not server then
      return false
    end
    local heard = redis.pcall('SPUBLISH', table.concat({ KEYS.wake, ':', server }), '1')
    if type(heard) ~= 'number' then
      return false
    end
    local removed = redis.pcall('ZREM', KEYS.idle, server)
    if heard > 0 or removed ~= 1 then
      return heard > 0
    end
  end
end

-- Wake one server. If the list already has an element, that element wakes the next server that
-- blocks on the list. `there` is the reply to `EXISTS idle idle wake`, if the script already has
-- it: 2 if servers are idle, plus 1 if the list has an element.
local function wake_server(there)
  there = there or redis.pcall('EXISTS', KEYS.idle, KEYS.idle, KEYS.wake)
  if there == 1 or there ~= 0 and message_idle_server() or there == 3 then
    return
  end
  local length = redis.pcall('LPUSH', KEYS.wake, '1')
  if type(length) == 'number' and length > 1 then
    redis.pcall('LPOP', KEYS.wake)
  end
end
