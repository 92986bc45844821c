#!lua
-- put_schedule: store a schedule, replacing any schedule with the same name. The schedule's first
-- tick is the first one after now. A name is refused if servers publish it as a periodic task of
-- their program. If the same record is already stored, nothing changes, and ticks that are due stay
-- due.
-- include: check_schema preconditions ensure_schema clock stored_records record_event
-- KEYS[1] stored_schedules hash  name -> time of the put (us, 8 bytes), then the record
-- KEYS[2] next_ticks       zset  schedules by next tick, us
-- KEYS[3] schedules        hash  =<schedule> -> record, @<schedule> -> time of publication, us
-- KEYS[4] meta             hash  schema
-- KEYS[5] events    stream  actions of operators
-- ARGV[1] now        int us  empty: the store's clock
-- ARGV[2] event    bytes   record of the action, see include/record_event.lua; empty: none
-- ARGV[3] silence    int us  time after its last publication for which a periodic task is live
-- ARGV[4] schedule   text    its name
-- ARGV[5] next       int us  its next tick
-- ARGV[6] record     bytes   opaque to the scripts
-- returns the first 8 bytes of the record; and what servers published under this name, empty when the
--   schedule was stored
local layout = redis.call('HGET', KEYS.meta, 'schema')
is_current_schema(layout)
local now, id = clock(ARGV.now), ARGV.schedule
local of_program = published_lately(now, tonumber(ARGV.silence), id)
if of_program then
  return { '', of_program }
end
local before = redis.call('HGET', KEYS.stored_schedules, id)
if before and string.sub(before, 9) == ARGV.record then
  return { string.sub(before, 1, 8), '' }
end
check_set(KEYS.next_ticks)
check_rights(KEYS.next_ticks, { 'ZADD' })
ensure_schema(layout)
local stamp = record_stamp(now, before)
redis.call('HSET', KEYS.stored_schedules, id, table.concat({ stamp, ARGV.record }))
redis.call('ZADD', KEYS.next_ticks, ARGV.next, id)
record_event(now, ARGV.event, 1, {})
return { stamp, '' }
