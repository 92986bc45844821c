#!lua flags=allow-oom
-- set_latency_target: set or remove the maximum time that the oldest pending task of a queue should
-- wait. The target is only for views; servers do not read it.
-- include: check_schema clock record_event
-- KEYS[1] meta      hash    latency_target
-- KEYS[2] events    stream  actions of operators
-- ARGV[1] now       int us  empty: the store's clock
-- ARGV[2] event     bytes   record of the action, see include/record_event.lua; empty: none
-- ARGV[3] target    int us  empty: remove
-- returns 1 when this changed something
check_schema()
local now, changed = clock(ARGV.now), 0
if ARGV.target == '' then
  changed = redis.call('HDEL', KEYS.meta, 'latency_target')
else
  local before = redis.call('HGET', KEYS.meta, 'latency_target')
  redis.call('HSET', KEYS.meta, 'latency_target', ARGV.target)
  changed = before == ARGV.target and 0 or 1
end
return record_event(now, ARGV.event, changed, {})
