#!lua flags=no-writes
-- type_stats: read statistics of types, and reports of servers.
-- include: check_schema clock
-- KEYS[1] type_stats   hash  # -> directory, m<hour>:<type> and h<day>:<type> -> block
-- KEYS[2] type_reports hash  <minute>:<server> -> counts by type
-- KEYS[3] meta         hash  schema
-- ARGV[1] now          int us  empty: the store's clock
-- ARGV[2] reports      int   maximum number of reports to read
-- ARGV[3] offset       int   number of reports to skip first
-- ARGV[4...] fields of type_stats
-- REPLY[1] now         text  us
-- REPLY[2] blocks      list  the value of each of these fields
-- REPLY[3] reports     list  alternating fields and reports
check_schema()
local blocks, reports = {}, {}
if #ARGV > 3 then
  blocks = redis.call('HMGET', KEYS.type_stats, unpack(ARGV, 4))
end
local first, most = tonumber(ARGV.offset), tonumber(ARGV.reports)
local fields = most > 0 and redis.call('HKEYS', KEYS.type_reports) or {}
local chosen = { unpack(fields, first + 1, math.min(#fields, first + most)) }
local held = #chosen > 0 and redis.call('HMGET', KEYS.type_reports, unpack(chosen)) or {}
for i, report in ipairs(held) do
  reports[2 * i - 1], reports[2 * i] = chosen[i], report
end
return reply({ now = to_text(clock(ARGV.now)), blocks = blocks, reports = reports })
