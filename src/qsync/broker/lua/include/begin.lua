-- begin: who brings a queue into being says which layout its data have.

local function begin_schema(meta_key, layout)
  if not is_schema(layout) then
    redis.call('HSET', meta_key, 'schema', schema)
  end
end
