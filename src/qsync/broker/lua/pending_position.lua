#!lua flags=no-writes
-- pending_position: read what delays a task, in addition to the data that `get_tasks` reads.
-- include: check_schema clock priority_bands successors
-- KEYS[1] pending  zset    ids by order tag
-- KEYS[2] unique   hash    locks
-- KEYS[3] fetches  hash    server id -> number, time us and ids
-- KEYS[4] meta     hash    paused, paused_at
-- KEYS[5] stats    hash    counters
-- KEYS[6] successors hash  id -> due us, member and message of its next run
-- ARGV[1] now      int us  empty: the store's clock
-- ARGV[2] id       text    id of the task; empty: it has none yet
-- ARGV[3] lock     text    its unique lock; empty: none
-- ARGV[4] server   text    server that runs it; empty: none
-- REPLY[1] now           int    us
-- REPLY[2] rank          int    number of tasks before it in pending; -1: it is not pending
-- REPLY[3] pending       int    number of pending tasks
-- REPLY[4] holder        text   id that holds its lock
-- REPLY[5] fetched_at    text   time of the last fetch of its server, us
-- REPLY[6] fetch_number  text   number of that fetch
-- REPLY[7] pause_note    bytes  who paused the queue and why
-- REPLY[8] paused_at     text   us
-- REPLY[9] completed     text   counter
-- REPLY[10] failed       text   counter
-- REPLY[11] above        int    number of pending tasks with a higher priority
-- REPLY[12] next_run     text   time in us at which it runs again once its attempt has ended
check_schema()
local now = clock(ARGV.now)
local last_fetch = redis.call('HGET', KEYS.fetches, ARGV.server) or ''
local number, time = string.match(last_fetch, '^(%d+) (%d+)')

-- Return the id that currently holds a lock. (This script does not use include/unique_locks.lua,
-- which has commands that write.)
local function holder_now(lock)
  local held = redis.call('HGET', KEYS.unique, '=' .. lock) or ''
  local ends, holder = string.match(held, '^(%d+):(.+)$')
  local open = holder and redis.call('HGET', KEYS.unique, '@' .. holder) == lock
  return holder and (open or parse_int(ends, 0) > now) and holder or ''
end

-- Return the number of pending tasks with a higher priority than this task.
local function tasks_above()
  local tag = tonumber(redis.call('ZSCORE', KEYS.pending, ARGV.id) or '')
  local lowest = tag and band_middle(priority_at(tag)) - band_reach
  return lowest and redis.call('ZCOUNT', KEYS.pending, '-inf', string.format('(%.17g', lowest)) or 0
end

local paused = redis.call('HMGET', KEYS.meta, 'paused', 'paused_at')
local ended = redis.call('HMGET', KEYS.stats, 'completed', 'failed')
return reply({
  now = now, rank = redis.call('ZRANK', KEYS.pending, ARGV.id) or -1,
  pending = redis.call('ZCARD', KEYS.pending), holder = holder_now(ARGV.lock),
  fetched_at = time, fetch_number = number, pause_note = paused[1], paused_at = paused[2],
  completed = ended[1], failed = ended[2], above = tasks_above(),
  next_run = read_successor(redis.call('HGET', KEYS.successors, ARGV.id) or ''),
})
