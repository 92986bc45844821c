#!lua flags=allow-oom
-- set_weight: set the share of a fairness key, or reset it to 1. The new share applies only to
-- tasks that become pending from now on.
-- include: check_schema clock record_event
-- KEYS[1] meta       hash    weight:<fairness key>
-- KEYS[2] events    stream  actions of operators
-- ARGV[1] now        int us  empty: the store's clock
-- ARGV[2] event    bytes   record of the action, see include/record_event.lua; empty: none
-- ARGV[3] key        text
-- ARGV[4] weight     text    0.001 to 1000; empty: remove
-- returns 1 when this changed something
check_schema()
local now, name = clock(ARGV.now), 'weight:' .. ARGV.key
local before, changed = redis.call('HGET', KEYS.meta, name), 0
if ARGV.weight == '' then
  changed = redis.call('HDEL', KEYS.meta, name)
else
  redis.call('HSET', KEYS.meta, name, ARGV.weight)
  changed = before == ARGV.weight and 0 or 1
end
return record_event(now, ARGV.event, changed, {})
