#!lua
-- report_types: store a server's counts by type, replacing its earlier report for the same minutes.
-- A full store refuses the report, so these minutes have no statistics.
-- include: check_schema
-- KEYS[1] type_reports hash  <minute>:<server> -> counts by type
-- KEYS[2] meta         hash  schema
-- ARGV[1...] two values per minute: field, counts
-- returns the fields of the reports that the store already had, up to 1000
check_schema()
local fields = redis.call('HKEYS', KEYS.type_reports)
redis.call('HSET', KEYS.type_reports, unpack(ARGV))
return { unpack(fields, 1, math.min(#fields, 1000)) }
