#!lua flags=no-writes
-- schedule_runs: read the noted runs of schedules.
-- include: check_schema
-- KEYS[1] schedule_runs hash  schedule -> its last runs, ! -> missed ticks
-- KEYS[2] meta       hash    schema
-- ARGV[1...] fields of schedules, or `!`
-- returns the notes in each field; empty: there are none
check_schema()
local values = redis.call('HMGET', KEYS.schedule_runs, unpack(ARGV))
for i = 1, #ARGV do
  values[i] = values[i] or ''
end
return values
