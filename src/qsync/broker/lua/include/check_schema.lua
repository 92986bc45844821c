-- check_schema: the number of a queue's data layout, kept in its meta. Scripts do not touch data of
-- another layout, since an older version could damage the data of a newer one.

local schema = '1'

-- Return whether `layout`, the recorded layout, is this one; data without a recorded layout have
-- the first one. Another layout ends the script with an error, before it has written anything.
local function is_current_schema(layout)
  if layout and layout ~= schema and string.find(layout, '^%d+$') then
    error({ err = 'SCHEMA ' .. layout .. ' ' .. schema })
  end
  return layout == schema
end

local function check_schema()
  return is_current_schema(redis.call('HGET', KEYS.meta, 'schema'))
end
