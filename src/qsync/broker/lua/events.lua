#!lua flags=no-writes
-- events: read the last actions of operators, the latest first.
-- include: check_schema
-- KEYS[1] events  stream  actions of operators: of a queue, or of no queue
-- KEYS[2] meta    hash    schema; without this key the actions belong to no queue
-- ARGV[1] count   int     maximum number of actions
-- ARGV[2] since   text    earliest time, ms since the Unix epoch, or `-`
-- returns a flat list of five values per action: its time, us; number; ids of tasks, separated by
--   spaces; its key; and its record
if KEYS.meta then
  check_schema()
end
local values = {}
for _, entry in ipairs(redis.call('XREVRANGE', KEYS.events, '+', ARGV.since, 'COUNT', tonumber(ARGV.count))) do
  local fields = {}
  for i = 1, #entry[2], 2 do
    fields[entry[2][i]] = entry[2][i + 1]
  end
  for _, name in ipairs({ 'at', 'number', 'ids', 'key', 'record' }) do
    values[#values + 1] = fields[name] or ''
  end
end
return values
