-- message_bytes: keep the size of all messages, which `meta` holds as `bytes` while a bound needs
-- it.

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

-- Add `amount` to the recorded size. A value that is not a number is replaced, because an error
-- would end the script between its writes. An audit later finds the wrong number.
local function add_bytes(amount)
  local answer = redis.pcall('HINCRBY', KEYS.meta, 'bytes', string.format('%.0f', amount))
  if type(answer) == 'table' and answer.err then
    redis.pcall('HSET', KEYS.meta, 'bytes', string.format('%.0f', math.max(amount, 0)))
  end
end
-- end flow
