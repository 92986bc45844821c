#!lua flags=allow-oom
-- pause: no task of the queue is fetched until it is resumed.
-- include: wake
-- KEYS[1] meta    hash    paused
-- KEYS[2] wake    list
-- ARGV[1] paused  bytes   who and why, opaque to the scripts; empty: resume
-- returns 1 when this changed something
if ARGV[1] ~= '' then
  local before = redis.call('HGET', KEYS[1], 'paused')
  redis.call('HSET', KEYS[1], 'paused', ARGV[1])
  return before and 0 or 1
end
local changed = redis.call('HDEL', KEYS[1], 'paused')
if changed == 1 then
  wake(KEYS[2])
end
return changed
