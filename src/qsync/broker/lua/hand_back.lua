#!lua flags=allow-oom
-- hand_back: return tasks that a server leased but will not run, without counting an attempt. Tasks
-- without a delay go to the head of `pending`, in this order; tasks with a delay go to `scheduled`.
-- A task with a cancel request ends instead. If a task never started, its start is refunded to the
-- rates of its limits, minus the starts that each limit has regained since the lease. A row may
-- close a limit for some time, during which no task that holds the limit starts.
-- variants: plain flow
-- flow include: message_bytes
-- include: check_schema preconditions clock wake_server counters crash_counts
-- flow include: message_limits limit_states waiter_entries limit_waiters priority_bands
-- include: fairness_tags unique_locks schedule_due ended_tasks forget_tasks check_leases note_runnable
-- flow include: successors start_successors
-- KEYS[1] tasks      hash    id -> message
-- KEYS[2] pending    zset    ids by order tag
-- KEYS[3] scheduled  zset    ids by due time
-- KEYS[4] active     zset    ids by lease expiry
-- KEYS[5] completed  zset    ids by end of retention
-- KEYS[6] owner      hash    id -> lease token
-- KEYS[7] crashes    hash    id -> crash count
-- KEYS[8] failures   hash    id -> failure record
-- KEYS[9] results    hash    id -> result record
-- KEYS[10] unique    hash    locks
-- KEYS[11] keys      hash    id -> fairness key
-- KEYS[12] cancels   hash    id -> retention us
-- KEYS[13] progress  hash    id -> done/total, or @<us> at which it became runnable
-- KEYS[14] wake      list
-- KEYS[15] meta      hash    virtual time
-- KEYS[16] stats     hash    counters
-- KEYS[17] done      channel of ended tasks
-- KEYS[18] recent  zset    ids that callers chose, by expiry time
-- KEYS[19] idle      zset    ids of servers that a message wakes
-- flow KEYS[20] successors  hash    id -> due us, member and message of its next run
-- flow KEYS[21] limited   zset    ids by order tag
-- flow KEYS[22] waiters   zset    limit and id of each limited task
-- flow KEYS[23] holds     hash    id -> its limits, of unfinished tasks
-- flow KEYS[24] limits    hash    limit -> its state
-- flow KEYS[25] limit_rules hash    name -> its rule
-- flow KEYS[26] openings  zset    limits by the time at which they open, us
-- ARGV[1] now        int us  empty: the store's clock
-- plain ARGV[2...] four values per task: id, token, delay us (empty: to the head), failure record
-- flow ARGV[2...] seven values per task: id, token, delay us (empty: to the head), failure record,
--   limit to close (empty: none), us for which it is closed, time of the lease (us; 0: the task has
--   started, or the time is not known)
-- An empty failure record leaves the stored one unchanged.
-- returns one outcome per task: ok | done | lost
check_schema()
local now = clock(ARGV.now)
-- flow:
local held, held_ids, replies = check_leases(ARGV, 2, 7)
-- plain:
local held, held_ids, replies = check_leases(ARGV, 2, 4)
-- end flow
-- flow:
local successors
successors, held, held_ids = split_successors(held, held_ids)
-- end flow
local head, later, cancelled, failures = {}, {}, {}, {}
-- flow:
local unstarted, leased_at, closed = {}, {}, {}

-- Record the limits of a row; `at` is the position of the task.
local function note_limits(id, at)
  local leased = tonumber(ARGV[7 * at + 1])
  if leased > 0 then
    unstarted[#unstarted + 1] = id
    leased_at[id] = leased
  end
  if ARGV[7 * at - 1] ~= '' then
    closed[#closed + 1] = { ARGV[7 * at - 1], now + tonumber(ARGV[7 * at]) }
  end
end

for at, i in ipairs(successors.positions) do
  note_limits(successors.ids[at], i)
end
-- end flow
local any_cancels = redis.call('EXISTS', KEYS.cancels) == 1
for at, i in ipairs(held) do
  -- flow:
  local id, delay, record = held_ids[at], ARGV[7 * i - 3], ARGV[7 * i - 2]
  note_limits(id, i)
  -- plain:
  local id, delay, record = held_ids[at], ARGV[4 * i], ARGV[4 * i + 1]
  -- end flow
  if record ~= '' then
    failures[#failures + 1] = id
    failures[#failures + 1] = record
  end
  if any_cancels and redis.call('HEXISTS', KEYS.cancels, id) == 1 then
    cancelled[#cancelled + 1] = id
  elseif delay == '' then
    head[#head + 1] = id
  else
    later[#later + 1] = to_text(now + tonumber(delay))
    later[#later + 1] = id
  end
end
if #held > 0 then
  check_hash(KEYS.failures)
  check_hash(KEYS.crashes)
  check_set(KEYS.pending)
  check_set(KEYS.scheduled)
  check_end_cancelled()
  check_rights(KEYS.tasks, { 'HDEL', 'HSET', 'HGET', 'ZADD', 'ZRANGE' })
  -- flow:
  check_hash(KEYS.keys)
  check_rights(KEYS.tasks, { 'ZRANGEBYSCORE' })
  -- end flow
end
-- flow:
begin_limits(now, #closed + #successors.ids > 0)
refund_starts(unstarted, leased_at)
for _, row in ipairs(closed) do
  close_limit(row[1], row[2])
end
-- end flow
release_leases(held_ids)
-- flow:
release_leases(successors.ids)
start_successors(successors)
-- end flow
remove_crash_signs(held_ids)
if #failures > 0 then
  redis.call('HSET', KEYS.failures, unpack(failures))
end
end_cancelled(now, cancelled)
schedule_due(KEYS.scheduled, later)
note_since(later)
if #head > 0 then
  to_head(head)
  note_runnable(now, head)
  wake_server()
end
-- flow:
if settle_limits() then
  wake_server()
end
-- end flow
publish_ended()
return replies
