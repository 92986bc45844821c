#!lua
-- roll_types: put reports of past minutes into the statistics of types, unless another server has
-- done so since the caller read the reports.
-- include: check_schema preconditions
-- KEYS[1] type_stats   hash  # -> directory, m<hour>:<type> and h<day>:<type> -> block
-- KEYS[2] type_reports hash  <minute>:<server> -> counts by type
-- KEYS[3] meta         hash  schema
-- ARGV[1] directory    bytes directory that the caller read; empty: there was none
-- ARGV[2] count        int   number of reports
-- ARGV[3...] the fields of these reports, then two values per field of type_stats: field, and its
--   new value; empty: delete the field
-- returns 1 when this changed something
check_schema()
check_hash(KEYS.type_reports)
check_rights(KEYS.type_stats, { 'HSET', 'HDEL' })
if (redis.call('HGET', KEYS.type_stats, '#') or '') ~= ARGV.directory then
  return 0
end
local first = 3 + tonumber(ARGV.count)
local stored, gone = {}, {}
for i = first, #ARGV, 2 do
  if ARGV[i + 1] == '' then
    gone[#gone + 1] = ARGV[i]
  else
    stored[#stored + 1] = ARGV[i]
    stored[#stored + 1] = ARGV[i + 1]
  end
end
redis.call('HSET', KEYS.type_stats, unpack(stored))
if #gone > 0 then
  redis.call('HDEL', KEYS.type_stats, unpack(gone))
end
if first > 3 then
  redis.call('HDEL', KEYS.type_reports, unpack(ARGV, 3, first - 1))
end
return 1
