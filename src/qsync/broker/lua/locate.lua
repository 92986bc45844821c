#!lua flags=no-writes
-- locate: what a task waits for, beside what `show` tells.
-- include: schema clock
-- KEYS[1] pending  zset    ids by order tag
-- KEYS[2] unique   hash    locks
-- KEYS[3] fetches  hash    server id -> number, time us and ids
-- KEYS[4] meta     hash    paused, paused_at
-- KEYS[5] stats    hash    counters
-- ARGV[1] now      int us  empty: the store's clock
-- ARGV[2] id       text    of the task; empty: it has none yet
-- ARGV[3] lock     text    its unique lock; empty: none
-- ARGV[4] server   text    that runs it; empty: none does
-- returns now us; how many are before it in pending, -1 when it is not there; how many are pending;
--   who has its lock; when that server last fetched, us, and under which number; who paused the
--   queue and why; since when, us; completed, failed
check_schema(KEYS[4])
local now = clock(ARGV[1])
local number, time = string.match(redis.call('HGET', KEYS[3], ARGV[4]) or '', '^(%d+) (%d+)')

-- Who has a lock now. (The piece for locks has commands that write in it.)
local function holder_now(lock)
  local ends, holder = string.match(redis.call('HGET', KEYS[2], '=' .. lock) or '', '^(%d+):(.+)$')
  local open = holder and redis.call('HGET', KEYS[2], '@' .. holder) == lock
  return holder and (open or digits(ends, 0) > now) and holder or ''
end

local paused = redis.call('HMGET', KEYS[4], 'paused', 'paused_at')
local ended = redis.call('HMGET', KEYS[5], 'completed', 'failed')
return {
  whole(now), redis.call('ZRANK', KEYS[1], ARGV[2]) or -1, redis.call('ZCARD', KEYS[1]),
  holder_now(ARGV[3]), time or '', number or '', paused[1] or '', paused[2] or '',
  ended[1] or '', ended[2] or '',
}
