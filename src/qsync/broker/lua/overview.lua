#!lua flags=no-writes
-- overview: read a snapshot of a queue: its sizes, the first pending tasks, and its counters.
-- include: schema clock cut cancels since
-- KEYS[1] scheduled  zset    ids by due time
-- KEYS[2] pending    zset    ids by order tag
-- KEYS[3] active     zset    ids by lease expiry
-- KEYS[4] retry      zset    ids by due time
-- KEYS[5] completed  zset    ids by end of retention
-- KEYS[6] dead       zset    ids by time of death
-- KEYS[7] tasks      hash    id -> message
-- KEYS[8] failures   hash    id -> failure record
-- KEYS[9] owner      hash    id -> lease token
-- KEYS[10] crashes   hash    id -> crash count
-- KEYS[11] results   hash    id -> result record
-- KEYS[12] unique    hash    locks
-- KEYS[13] keys      hash    id -> fairness key
-- KEYS[14] fairness  zset    fairness keys by last tag
-- KEYS[15] fetches   hash    server id -> last fetch
-- KEYS[16] meta      hash    paused, paused_at
-- KEYS[17] stats     hash    counters, in all and per day
-- KEYS[18] cancels   hash    id -> retention us
-- KEYS[19] progress  hash    id -> done/total, or @<us> at which it became runnable
-- ARGV[1] now        int us  empty: the store's clock
-- ARGV[2] days       int     number of days to return counters of, including today; 1 to 90
-- ARGV[3...] names of counters
-- returns now us; the sizes of the six states in this order; the approximate size of the keys in
--   bytes, -1 when the store does not report it; who paused the queue and why, empty when it is not
--   paused; time of the pause, us; the first pending tasks, up to 8 and 1 MiB, each as message
--   (truncated when long), length of the message and failure record; the counters, name and value in
--   turn; the number of completed tasks that were cancelled; the earliest stored time, us, at which
--   a pending task became runnable, empty when none is stored
-- Only the first 512 pending tasks are read. Tasks with such a stored time are not among the 8.
check_schema(KEYS[16])
local now = clock(ARGV[1])
local sizes, bytes = {}, 0
for _, set_key in ipairs({ KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6] }) do
  sizes[#sizes + 1] = redis.call('ZCARD', set_key)
end
for _, any_key in ipairs({
  KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7], KEYS[8], KEYS[9], KEYS[10],
  KEYS[11], KEYS[12], KEYS[13], KEYS[14], KEYS[15], KEYS[16], KEYS[17],
}) do
  local usage = redis.pcall('MEMORY', 'USAGE', any_key)
  if type(usage) == 'table' then
    bytes = -1
    break
  end
  bytes = bytes + (usage or 0)
end
-- Tasks that were handed back are in front of tasks that have waited longer.
local last = redis.call('EXISTS', KEYS[19]) == 1 and 511 or 7
local ids = redis.call('ZRANGE', KEYS[2], 0, last)
local since, earliest = read_since(KEYS[19], ids), math.huge
local first, read, full = {}, 0, false
for i, id in ipairs(ids) do
  local at = digits(string.match(since[i] or '', '^@(.*)$'))
  if at then
    earliest = math.min(earliest, at)
  elseif not full then
    read = read + redis.call('HSTRLEN', KEYS[7], id)
    full = #first == 8 or #first > 0 and read > 1048576
    if not full then
      local message, length = cut_message(KEYS[7], id)
      first[#first + 1] = { message, length, redis.call('HGET', KEYS[8], id) or '' }
    end
  end
end
local counters, today = {}, math.floor(now / 86400000000)
for i = 3, #ARGV do
  local counter = ARGV[i]
  local names = { counter }
  for back = 0, tonumber(ARGV[2]) - 1 do
    names[#names + 1] = counter .. ':' .. whole(today - back)
  end
  for at, value in ipairs(redis.call('HMGET', KEYS[17], unpack(names))) do
    if value then
      counters[#counters + 1] = names[at]
      counters[#counters + 1] = value
    end
  end
end
local paused = redis.call('HMGET', KEYS[16], 'paused', 'paused_at')
return {
  whole(now), sizes, bytes, paused[1] or '', paused[2] or '', first, counters,
  count_cancelled(KEYS[3], KEYS[5], KEYS[18]), earliest < math.huge and whole(earliest) or '',
}
