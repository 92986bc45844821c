-- begin: record the data layout when a queue is created.

local function begin_schema(meta_key, layout)
  if not is_schema(layout) then
    redis.call('HSET', meta_key, 'schema', schema)
  end
end
