-- message_bytes: the size of all messages, which meta keeps as `bytes` while a bound needs it.

-- flow:
-- Return whether the queue keeps the size of its messages.
local function keeps_bytes()
  return redis.call('HEXISTS', KEYS.meta, 'bytes') == 1
end

-- Return the size of the stored messages of ids.
local function stored_bytes(ids)
  local bytes = 0
  for _, id in ipairs(ids) do
    bytes = bytes + redis.call('HSTRLEN', KEYS.tasks, id)
  end
  return bytes
end

local function add_bytes(amount)
  redis.call('HINCRBY', KEYS.meta, 'bytes', string.format('%.0f', amount))
end
-- end flow
