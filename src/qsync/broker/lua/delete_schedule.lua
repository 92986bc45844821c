#!lua flags=allow-oom
-- delete_schedule: delete a schedule that a client put, with its pause.
-- include: check_schema preconditions clock record_event
-- KEYS[1] stored_schedules hash  name -> time of the put (us, 8 bytes), then the record
-- KEYS[2] next_ticks       zset  schedules by next tick, us
-- KEYS[3] schedules        hash  =<schedule> while servers publish one; !<schedule> while it is paused
-- KEYS[4] meta             hash  schema
-- KEYS[5] events    stream  actions of operators
-- KEYS[6] schedule_runs hash  schedule -> its last runs
-- ARGV[1] now        int us  empty: the store's clock
-- ARGV[2] event    bytes   record of the action, see include/record_event.lua; empty: none
-- ARGV[3] schedule   text    its name
-- ARGV[4] stamp      bytes   first 8 bytes of the record to delete; empty: any
-- ARGV[5] runs     text    its field in schedule_runs
-- returns 1 when deleted, 0 when there is no such schedule or only another version of it
check_schema()
local now, id = clock(ARGV.now), ARGV.schedule
local record = redis.call('HGET', KEYS.stored_schedules, id)
if not record or ARGV.stamp ~= '' and string.sub(record, 1, 8) ~= ARGV.stamp then
  return record_event(now, ARGV.event, 0, {})
end
check_set(KEYS.next_ticks)
check_rights(KEYS.next_ticks, { 'ZREM' })
local of_program = redis.call('HEXISTS', KEYS.schedules, '=' .. id) == 1
redis.call('HDEL', KEYS.stored_schedules, id)
redis.call('ZREM', KEYS.next_ticks, id)
if not of_program then
  redis.call('HDEL', KEYS.schedules, '!' .. id)
end
redis.pcall('HDEL', KEYS.schedule_runs, ARGV.runs)
record_event(now, ARGV.event, 1, {})
return 1
