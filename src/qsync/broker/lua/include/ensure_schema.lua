-- ensure_schema: record the data layout when a queue is created.

local function ensure_schema(layout)
  if not is_current_schema(layout) then
    redis.call('HSET', KEYS.meta, 'schema', schema)
  end
end
