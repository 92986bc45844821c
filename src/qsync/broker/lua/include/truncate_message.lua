-- truncate_message: leave out most of a message's payload, for views of many tasks.

-- Return the message of an id and its length. For a message over 16 KiB, return only the first 1
-- KiB and the last 12 KiB, which hold everything except the payload. For a message over 4 MiB,
-- return an empty text.
local function truncate_message(id)
  local length = redis.call('HSTRLEN', KEYS.tasks, id)
  if length == 0 or length > 4194304 then
    return '', length
  end
  local body = redis.call('HGET', KEYS.tasks, id)
  if length <= 16384 then
    return body, length
  end
  return table.concat({ string.sub(body, 1, 1024), string.sub(body, -12288) }), length
end
