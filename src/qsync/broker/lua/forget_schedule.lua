#!lua flags=allow-oom
-- forget_schedule: delete a schedule that servers no longer publish, with its last tick.
-- include: check_schema preconditions clock record_event
-- KEYS[1] schedules  hash    =<schedule>, ><schedule>, @<schedule>, !<schedule>, #<schedule>
-- KEYS[2] ticks      hash    schedule -> last tick enqueued, us
-- KEYS[3] meta       hash    schema
-- KEYS[4] events    stream  actions of operators
-- KEYS[5] schedule_runs hash  schedule -> its last runs
-- ARGV[1] now        int us  empty: the store's clock
-- ARGV[2] event    bytes   record of the action, see include/record_event.lua; empty: none
-- ARGV[3] schedule   text    its name
-- ARGV[4] silence    int us  minimum time since its last publication
-- ARGV[5] runs     text    its field in schedule_runs
-- returns 1 when deleted, 0 when servers published it since, -1 when there is no such schedule
check_schema()
local now, id = clock(ARGV.now), ARGV.schedule
if redis.call('HEXISTS', KEYS.schedules, '=' .. id) == 0 then
  return record_event(now, ARGV.event, 0, {}) == 1 and 1 or -1
end
if now - parse_int(redis.call('HGET', KEYS.schedules, '@' .. id), 0) < tonumber(ARGV.silence) then
  return 0
end
check_hash(KEYS.ticks)
redis.call('HDEL', KEYS.schedules, '=' .. id, '>' .. id, '@' .. id, '!' .. id, '#' .. id)
redis.call('HDEL', KEYS.ticks, id)
redis.pcall('HDEL', KEYS.schedule_runs, ARGV.runs)
record_event(now, ARGV.event, 1, {})
return 1
