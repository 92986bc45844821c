#!lua flags=allow-oom
-- set_weight: set the share of a fairness key, or reset it to 1. It applies to tasks that become
-- pending from now on.
-- include: check_schema
-- KEYS[1] meta       hash    weight:<fairness key>
-- ARGV[1] key        text
-- ARGV[2] weight     text    0.001 to 1000; empty: remove
-- returns 1 when this changed something
check_schema()
local name = 'weight:' .. ARGV.key
if ARGV.weight == '' then
  return redis.call('HDEL', KEYS.meta, name)
end
local before = redis.call('HGET', KEYS.meta, name)
redis.call('HSET', KEYS.meta, name, ARGV.weight)
return before == ARGV.weight and 0 or 1
