#!lua flags=allow-oom
-- pause_schedule: skip the ticks of a schedule until it is resumed. Skipped ticks are not enqueued
-- later.
-- include: check_schema preconditions clock stored_records record_event
-- KEYS[1] schedules  hash    =<schedule> -> record, !<schedule> -> who paused it, when and why
-- KEYS[2] ticks      hash    schedule -> last tick enqueued, us
-- KEYS[3] meta       hash    schema
-- KEYS[4] stored_schedules hash  name -> time of the put (us, 8 bytes), then the record
-- KEYS[5] events    stream  actions of operators
-- ARGV[1] now        int us  empty: the store's clock
-- ARGV[2] event    bytes   record of the action, see include/record_event.lua; empty: none
-- ARGV[3] schedule   text    its name
-- ARGV[4] note       bytes   who pauses it and why, opaque to the scripts; empty: resume
-- returns 1 when this changed something, 0 when it did not, -1 when there is no such schedule
check_schema()
local now, id, field = clock(ARGV.now), ARGV.schedule, '!' .. ARGV.schedule
local stored = redis.call('HGET', KEYS.stored_schedules, id)
if not stored and redis.call('HEXISTS', KEYS.schedules, '=' .. id) == 0 then
  return -1
end
local before = redis.call('HGET', KEYS.schedules, field)
if ARGV.note ~= '' then
  local since = parse_int(string.match(before or '', '^(%d+) '), now)
  redis.call('HSET', KEYS.schedules, field, to_text(since) .. ' ' .. ARGV.note)
  record_event(now, ARGV.event, 1, {})
  return before and 0 or 1
end
if not before then
  return record_event(now, ARGV.event, 0, {})
end
check_hash(KEYS.ticks)
check_rights(KEYS.ticks, { 'HSET' })
redis.call('HDEL', KEYS.schedules, field)
if stored then
  local record = table.concat({ record_stamp(now, stored), string.sub(stored, 9) })
  redis.call('HSET', KEYS.stored_schedules, id, record)
end
if now > parse_int(redis.call('HGET', KEYS.ticks, id), 0) then
  redis.call('HSET', KEYS.ticks, id, to_text(now))
end
record_event(now, ARGV.event, 1, {})
return 1
