#!lua flags=allow-oom
-- pause: pause or resume a queue. While it is paused no task is fetched.
-- include: schema clock wake
-- KEYS[1] meta    hash    paused, paused_at
-- KEYS[2] wake    list
-- KEYS[3] idle      zset    ids of servers that a message wakes
-- ARGV[1] now     int us  empty: the store's clock
-- ARGV[2] paused  bytes   who pauses it and why, opaque to the scripts; empty: resume
-- returns 1 when this changed something
check_schema(KEYS[1])
if ARGV[2] ~= '' then
  local before = redis.call('HGET', KEYS[1], 'paused')
  redis.call('HSET', KEYS[1], 'paused', ARGV[2])
  if before then
    return 0
  end
  redis.call('HSET', KEYS[1], 'paused_at', whole(clock(ARGV[1])))
  return 1
end
local changed = redis.call('HDEL', KEYS[1], 'paused')
redis.call('HDEL', KEYS[1], 'paused_at')
if changed == 1 then
  wake(KEYS[2], KEYS[3])
end
return changed
