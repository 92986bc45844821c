-- check_schema: check the number of a queue's data layout, which is stored in `meta`. Scripts do
-- not touch data of another layout, since an older version could damage the data of a newer one.
-- Queues that use flow control have layout 2; plain variants of scripts refuse it, so that the flow
-- variants run.

-- flow:
local schema, newest_schema = '1', '2'

-- Return whether the script can read `layout`, the recorded layout; false if none is recorded. Any
-- other layout ends the script with an error before it writes anything.
local function is_current_schema(layout)
  local known = layout == schema or layout == newest_schema
  if layout and not known and string.find(layout, '^%d+$') then
    error({ err = 'SCHEMA ' .. layout .. ' ' .. newest_schema })
  end
  return known
end
-- plain:
local schema = '1'

local function is_current_schema(layout)
  if layout and layout ~= schema and string.find(layout, '^%d+$') then
    error({ err = 'SCHEMA ' .. layout .. ' ' .. schema })
  end
  return layout == schema
end
-- end flow

local function check_schema()
  return is_current_schema(redis.call('HGET', KEYS.meta, 'schema'))
end
