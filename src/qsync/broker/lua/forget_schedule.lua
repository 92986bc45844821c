#!lua flags=allow-oom
-- forget_schedule: delete a schedule that no server publishes any more, with its last tick.
-- include: schema guard clock
-- KEYS[1] schedules  hash    =<schedule>, ><schedule>, @<schedule>, !<schedule>, #<schedule>
-- KEYS[2] ticks      hash    schedule -> last tick enqueued, us
-- KEYS[3] meta       hash    schema
-- ARGV[1] now        int us  empty: the store's clock
-- ARGV[2] schedule   text    its name
-- ARGV[3] silence    int us  minimum time since its last publication
-- returns 1 when deleted, 0 when it was published since, -1 when there is no such schedule
check_schema(KEYS[3])
local now, id = clock(ARGV[1]), ARGV[2]
if redis.call('HEXISTS', KEYS[1], '=' .. id) == 0 then
  return -1
end
if now - digits(redis.call('HGET', KEYS[1], '@' .. id), 0) < tonumber(ARGV[3]) then
  return 0
end
check_hash(KEYS[2])
redis.call('HDEL', KEYS[1], '=' .. id, '>' .. id, '@' .. id, '!' .. id, '#' .. id)
redis.call('HDEL', KEYS[2], id)
return 1
