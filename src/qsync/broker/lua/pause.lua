#!lua flags=allow-oom
-- pause: pause or resume a queue. While it is paused no task is fetched.
-- include: check_schema clock wake_server
-- KEYS[1] meta    hash    paused, paused_at
-- KEYS[2] wake    list
-- KEYS[3] idle      zset    ids of servers that a message wakes
-- ARGV[1] now     int us  empty: the store's clock
-- ARGV[2] paused  bytes   who pauses it and why, opaque to the scripts; empty: resume
-- returns 1 when this changed something
check_schema()
if ARGV.paused ~= '' then
  local before = redis.call('HGET', KEYS.meta, 'paused')
  redis.call('HSET', KEYS.meta, 'paused', ARGV.paused)
  if before then
    return 0
  end
  redis.call('HSET', KEYS.meta, 'paused_at', to_text(clock(ARGV.now)))
  return 1
end
local changed = redis.call('HDEL', KEYS.meta, 'paused')
redis.call('HDEL', KEYS.meta, 'paused_at')
if changed == 1 then
  wake_server()
end
return changed
