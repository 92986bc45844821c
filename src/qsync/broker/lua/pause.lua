#!lua flags=allow-oom
-- pause: pause or resume a queue. While the queue is paused, no task is fetched.
-- include: check_schema clock wake_server record_event
-- KEYS[1] meta    hash    paused, paused_at
-- KEYS[2] wake    list
-- KEYS[3] idle      zset    ids of servers that a message wakes
-- KEYS[4] events    stream  actions of operators
-- ARGV[1] now     int us  empty: the store's clock
-- ARGV[2] event    bytes   record of the action, see include/record_event.lua; empty: none
-- ARGV[3] paused  bytes   who pauses it and why, opaque to the scripts; empty: resume
-- returns 1 when this changed something
check_schema()
local now = clock(ARGV.now)
if ARGV.paused ~= '' then
  local before = redis.call('HGET', KEYS.meta, 'paused')
  redis.call('HSET', KEYS.meta, 'paused', ARGV.paused)
  if not before then
    redis.call('HSET', KEYS.meta, 'paused_at', to_text(now))
  end
  record_event(now, ARGV.event, 1, {})
  return before and 0 or 1
end
local changed = redis.call('HDEL', KEYS.meta, 'paused')
redis.call('HDEL', KEYS.meta, 'paused_at')
if changed == 1 then
  wake_server()
end
return record_event(now, ARGV.event, changed, {})
