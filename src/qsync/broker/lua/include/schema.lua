-- schema: the number of the layout of a queue's data, in its meta. Scripts leave data of another layout
-- alone: an earlier version would spoil what a later one keeps.

local schema = '1'

-- True when the data say that they have this layout; those that do not say have the first one. With
-- another one the script ends here, with an error: it has written nothing. `layout` is what they say.
local function is_schema(layout)
  if layout and layout ~= schema and string.find(layout, '^%d+$') then
    error({ err = 'SCHEMA ' .. layout .. ' ' .. schema })
  end
  return layout == schema
end

local function check_schema(meta_key)
  return is_schema(redis.call('HGET', meta_key, 'schema'))
end
