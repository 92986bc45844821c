#!lua flags=no-writes
-- overview: read a snapshot of a queue, with its sizes, the first pending tasks, and its counters.
-- include: check_schema clock truncate_message count_cancelled runnable_since
-- KEYS[1] scheduled  zset    ids by due time
-- KEYS[2] pending    zset    ids by order tag
-- KEYS[3] limited   zset    ids by order tag
-- KEYS[4] active     zset    ids by lease expiry
-- KEYS[5] retry      zset    ids by due time
-- KEYS[6] completed  zset    ids by end of retention
-- KEYS[7] dead       zset    ids by time of death
-- KEYS[8] tasks      hash    id -> message
-- KEYS[9] failures   hash    id -> failure record
-- KEYS[10] owner      hash    id -> lease token
-- KEYS[11] crashes   hash    id -> crash count
-- KEYS[12] results   hash    id -> result record
-- KEYS[13] unique    hash    locks
-- KEYS[14] keys      hash    id -> fairness key
-- KEYS[15] fairness  zset    fairness keys by last tag
-- KEYS[16] fetches   hash    server id -> last fetch
-- KEYS[17] meta      hash    paused, paused_at, tally
-- KEYS[18] stats     hash    counters, in all and per day
-- KEYS[19] cancels   hash    id -> retention us
-- KEYS[20] progress  hash    id -> done/total, or @<us> at which it became runnable
-- KEYS[21] waiters   zset    limit and id of each limited task
-- KEYS[22] holds     hash    id -> its limits, of unfinished tasks
-- KEYS[23] limits    hash    limit -> its state
-- KEYS[24] limit_rules hash    name -> its rule
-- KEYS[25] openings  zset    limits by the time at which they open, us
-- KEYS[26] type_stats hash   statistics of types
-- ARGV[1] now        int us  empty: the store's clock
-- ARGV[2] days       int     number of days whose counters to return, including today; 1 to 90
-- ARGV[3...] names of counters
-- REPLY[1] now             int   us
-- REPLY[2] sizes           list  of the seven states in the order of their keys
-- REPLY[3] memory          int   approximate size of the keys in bytes; -1: not reported by the store
-- REPLY[4] pause_note      text  who paused the queue and why; empty: it is not paused
-- REPLY[5] paused_at       text  us
-- REPLY[6] first           list  the first pending tasks, up to 8 and 1 MiB: message (truncated when
--   long), length of the message and failure record
-- REPLY[7] counters        list  alternating names and values
-- REPLY[8] cancelled       int   number of completed tasks that were cancelled
-- REPLY[9] runnable_since  text  earliest stored time, us, at which a pending task became runnable;
--   empty: none is stored
-- REPLY[10] bounds         list  bounds of the program and of an operator, and the size of all messages,
--   -1 when the queue does not record it
-- REPLY[11] target         int   latency target, us; -1: none
-- REPLY[12] died           list  dead tasks that no operator has acknowledged: number, and times of the
--   first and the last death, us; the times are empty if there are no such tasks
-- REPLY[13] tally          list  day and sum of the tally; both are empty without a tally
-- The script reads at most the first 512 pending tasks. `first` leaves out tasks that have a stored
-- time (see `runnable_since`).
check_schema()
local now = clock(ARGV.now)
local sizes, bytes = {}, 0
for _, set_key in ipairs({
  KEYS.scheduled, KEYS.pending, KEYS.limited, KEYS.active, KEYS.retry, KEYS.completed, KEYS.dead,
}) do
  sizes[#sizes + 1] = redis.call('ZCARD', set_key)
end
for _, any_key in ipairs({
  KEYS.scheduled, KEYS.pending, KEYS.active, KEYS.retry, KEYS.completed, KEYS.dead, KEYS.tasks,
  KEYS.failures, KEYS.owner, KEYS.crashes, KEYS.results, KEYS.unique, KEYS.keys, KEYS.fairness,
  KEYS.fetches, KEYS.meta, KEYS.stats, KEYS.limited, KEYS.waiters, KEYS.holds, KEYS.limits,
  KEYS.limit_rules, KEYS.openings, KEYS.type_stats,
}) do
  local usage = redis.pcall('MEMORY', 'USAGE', any_key)
  if type(usage) == 'table' then
    bytes = -1
    break
  end
  bytes = bytes + (usage or 0)
end
-- Tasks that were handed back have a stored time and precede tasks that have waited longer. So read
-- more ids while there may be such tasks.
local last = redis.call('EXISTS', KEYS.progress) == 1 and 511 or 7
local ids = redis.call('ZRANGE', KEYS.pending, 0, last)
local since, earliest = read_since(ids), math.huge
local first, read, full = {}, 0, false
for i, id in ipairs(ids) do
  local at = parse_int(string.match(since[i] or '', '^@(.*)$'))
  if at then
    earliest = math.min(earliest, at)
  elseif not full then
    read = read + redis.call('HSTRLEN', KEYS.tasks, id)
    full = #first == 8 or #first > 0 and read > 1048576
    if not full then
      local message, length = truncate_message(id)
      first[#first + 1] = { message, length, redis.call('HGET', KEYS.failures, id) or '' }
    end
  end
end
local counters, today = {}, math.floor(now / 86400000000)
for i = 3, #ARGV do
  local counter = ARGV[i]
  local names = { counter }
  for back = 0, tonumber(ARGV.days) - 1 do
    names[#names + 1] = counter .. ':' .. to_text(today - back)
  end
  for at, value in ipairs(redis.call('HMGET', KEYS.stats, unpack(names))) do
    if value then
      counters[#counters + 1] = names[at]
      counters[#counters + 1] = value
    end
  end
end
local paused = redis.call('HMGET', KEYS.meta, 'paused', 'paused_at', 'bounds', '!bounds', 'bytes',
  'latency_target', 'dead_known', 'tally_day', 'tally')
-- If the time of the acknowledgement is in the future, the clock was wrong, so use the current time
-- instead.
local known = table.concat({ '(', to_text(math.min(now, parse_int(paused[7], 0))) })
local number, died = redis.call('ZCOUNT', KEYS.dead, known, '+inf'), {}
if number > 0 then
  died[1] = redis.call('ZRANGE', KEYS.dead, known, '+inf', 'BYSCORE', 'LIMIT', 0, 1, 'WITHSCORES')[2]
  died[2] = redis.call('ZRANGE', KEYS.dead, -1, -1, 'WITHSCORES')[2]
end
return reply({
  now = to_text(now), sizes = sizes, memory = bytes, first = first, counters = counters,
  pause_note = paused[1], paused_at = paused[2], cancelled = count_cancelled(),
  runnable_since = earliest < math.huge and to_text(earliest),
  bounds = { paused[3] or '', paused[4] or '', parse_int(paused[5], -1) },
  target = parse_int(paused[6], -1), died = { number, died[1] or '', died[2] or '' },
  tally = { paused[8] or '', paused[9] or '' },
})
