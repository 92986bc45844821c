#!lua flags=allow-oom
-- acknowledge_dead: record that operators have acknowledged all tasks of a queue that died up to a
-- given time. Only the script `overview` reads that time.
-- include: check_schema clock record_event
-- KEYS[1] meta      hash    dead_known
-- KEYS[2] events    stream  actions of operators
-- KEYS[3] dead      zset    ids by time of death
-- ARGV[1] now       int us  empty: the store's clock
-- ARGV[2] event     bytes   record of the action, see include/record_event.lua; empty: none
-- ARGV[3] through    int us  acknowledge the tasks that died until this time; empty: now
-- returns the number of dead tasks that were not acknowledged before
check_schema()
local now = clock(ARGV.now)
local until_us = math.min(now, parse_int(ARGV.through, now))
local known = math.min(now, parse_int(redis.call('HGET', KEYS.meta, 'dead_known'), 0))
if until_us <= known then
  return record_event(now, ARGV.event, 0, {})
end
local after = table.concat({ '(', to_text(known) })
local number = redis.call('ZCOUNT', KEYS.dead, after, to_text(until_us))
if number > 0 then
  redis.call('HSET', KEYS.meta, 'dead_known', to_text(until_us))
end
return record_event(now, ARGV.event, number, {})
