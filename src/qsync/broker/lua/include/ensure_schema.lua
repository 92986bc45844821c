-- ensure_schema: record the data layout when a queue is created.

local function ensure_schema(layout)
  if not is_current_schema(layout) then
    redis.call('HSET', KEYS.meta, 'schema', schema)
  end
end
-- flow:

-- Record that the queue uses flow control.
local function lift_schema()
  redis.call('HSET', KEYS.meta, 'schema', newest_schema)
end
-- end flow
