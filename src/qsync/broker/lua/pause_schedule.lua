#!lua flags=allow-oom
-- pause_schedule: skip the ticks of a schedule until it is resumed. They are not made up afterwards.
-- include: schema guard clock
-- KEYS[1] schedules  hash    =<schedule> -> record, !<schedule> -> who paused it, when and why
-- KEYS[2] ticks      hash    schedule -> last tick enqueued, us
-- KEYS[3] meta       hash    schema
-- ARGV[1] now        int us  empty: the store's clock
-- ARGV[2] schedule   text    its name
-- ARGV[3] note       bytes   who pauses it and why, opaque to the scripts; empty: resume
-- returns 1 when this changed something, 0 when not, -1 when there is no such schedule
check_schema(KEYS[3])
local now, id, field = clock(ARGV[1]), ARGV[2], '!' .. ARGV[2]
if redis.call('HEXISTS', KEYS[1], '=' .. id) == 0 then
  return -1
end
local before = redis.call('HGET', KEYS[1], field)
if ARGV[3] ~= '' then
  local since = digits(string.match(before or '', '^(%d+) '), now)
  redis.call('HSET', KEYS[1], field, whole(since) .. ' ' .. ARGV[3])
  return before and 0 or 1
end
if not before then
  return 0
end
check_hash(KEYS[2])
check_rights(KEYS[2], { 'HSET' })
redis.call('HDEL', KEYS[1], field)
if now > digits(redis.call('HGET', KEYS[2], id), 0) then
  redis.call('HSET', KEYS[2], id, whole(now))
end
return 1
