-- cut: messages without most of their payload, for those who look at many.

-- The message of an id and how long it is: of one over 16 KiB only the first 1 KiB and the last
-- 12 KiB, which is all but its payload; of one over 4 MiB nothing.
local function cut_message(tasks_key, id)
  local length = redis.call('HSTRLEN', tasks_key, id)
  if length == 0 or length > 4194304 then
    return '', length
  end
  local body = redis.call('HGET', tasks_key, id)
  if length <= 16384 then
    return body, length
  end
  return table.concat({ string.sub(body, 1, 1024), string.sub(body, -12288) }), length
end
