#!lua flags=no-writes
-- pending_position: read what delays a task, in addition to what `get_tasks` returns.
-- include: check_schema clock
-- KEYS[1] pending  zset    ids by order tag
-- KEYS[2] unique   hash    locks
-- KEYS[3] fetches  hash    server id -> number, time us and ids
-- KEYS[4] meta     hash    paused, paused_at
-- KEYS[5] stats    hash    counters
-- ARGV[1] now      int us  empty: the store's clock
-- ARGV[2] id       text    id of the task; empty: it has none yet
-- ARGV[3] lock     text    its unique lock; empty: none
-- ARGV[4] server   text    server that runs it; empty: none
-- returns now us; number of tasks before it in pending, -1 when it is not pending; number of
--   pending tasks; id that holds its lock; time (us) and number of that server's last fetch; who
--   paused the queue and why; time of the pause, us; counters completed and failed
check_schema()
local now = clock(ARGV.now)
local number, time = string.match(redis.call('HGET', KEYS.fetches, ARGV.server) or '', '^(%d+) (%d+)')

-- Return the id that holds a lock now. (include/unique_locks.lua is not used here, since it has
-- commands that write.)
local function holder_now(lock)
  local ends, holder = string.match(redis.call('HGET', KEYS.unique, '=' .. lock) or '', '^(%d+):(.+)$')
  local open = holder and redis.call('HGET', KEYS.unique, '@' .. holder) == lock
  return holder and (open or parse_int(ends, 0) > now) and holder or ''
end

local paused = redis.call('HMGET', KEYS.meta, 'paused', 'paused_at')
local ended = redis.call('HMGET', KEYS.stats, 'completed', 'failed')
return {
  to_text(now), redis.call('ZRANK', KEYS.pending, ARGV.id) or -1, redis.call('ZCARD', KEYS.pending),
  holder_now(ARGV.lock), time or '', number or '', paused[1] or '', paused[2] or '',
  ended[1] or '', ended[2] or '',
}
