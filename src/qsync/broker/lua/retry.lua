#!lua flags=allow-oom
-- retry: put tasks whose attempt failed into `retry`. A task with a cancel request ends instead.
-- variants: plain flow
-- include: check_schema preconditions clock wake_server
-- flow include: message_limits limit_states waiter_entries limit_waiters
-- include: counters crash_counts unique_locks
-- flow include: message_bytes
-- include: schedule_due ended_tasks forget_tasks check_leases
-- flow include: note_runnable successors start_successors
-- KEYS[1] tasks      hash    id -> message
-- KEYS[2] active     zset    ids by lease expiry
-- KEYS[3] retry      zset    ids by due time
-- KEYS[4] completed  zset    ids by end of retention
-- KEYS[5] owner      hash    id -> lease token
-- KEYS[6] crashes    hash    id -> crash count
-- KEYS[7] failures   hash    id -> failure record
-- KEYS[8] results    hash    id -> result record
-- KEYS[9] unique     hash    locks
-- KEYS[10] keys      hash    id -> fairness key
-- KEYS[11] cancels   hash    id -> retention us
-- KEYS[12] progress  hash    id -> done/total, or @<us> at which it became runnable
-- KEYS[13] wake      list
-- KEYS[14] stats     hash    counters
-- KEYS[15] done      channel of ended tasks
-- KEYS[16] meta      hash    schema
-- KEYS[17] recent  zset    ids that callers chose, by expiry time
-- KEYS[18] idle      zset    ids of servers that a message wakes
-- flow KEYS[19] scheduled  zset    ids by due time
-- flow KEYS[20] successors  hash    id -> due us, member and message of its next run
-- flow KEYS[21] pending   zset    ids by order tag
-- flow KEYS[22] limited   zset    ids by order tag
-- flow KEYS[23] waiters   zset    limit and id of each limited task
-- flow KEYS[24] holds     hash    id -> its limits, of unfinished tasks
-- flow KEYS[25] limits    hash    limit -> its state
-- flow KEYS[26] limit_rules hash    name -> its rule
-- flow KEYS[27] openings  zset    limits by the time at which they open, us
-- ARGV[1] now        int us  empty: the store's clock
-- ARGV[2...] four values per task: id, token, delay us, failure record
-- returns one outcome per task: ok | done | lost
check_schema()
local now = clock(ARGV.now)
local held, held_ids, replies, lost = check_leases(ARGV, 2, 4)
-- flow:
local successors
successors, held, held_ids = split_successors(held, held_ids)
-- end flow
local failures, cancelled, again = {}, {}, {}
local any_cancels = redis.call('EXISTS', KEYS.cancels) == 1
for at, i in ipairs(held) do
  local id = held_ids[at]
  failures[2 * at - 1], failures[2 * at] = id, ARGV[4 * i + 1]
  if any_cancels and redis.call('HEXISTS', KEYS.cancels, id) == 1 then
    cancelled[#cancelled + 1] = id
  else
    again[#again + 1] = to_text(now + tonumber(ARGV[4 * i]))
    again[#again + 1] = id
  end
end
-- flow:
begin_limits(now, #successors.ids > 0)
-- end flow
if #held > 0 then
  check_hash(KEYS.failures)
  check_hash(KEYS.crashes)
  check_set(KEYS.retry)
  check_end_cancelled()
  check_rights(KEYS.tasks, { 'HDEL', 'HSET', 'HGET', 'ZADD', 'ZRANGE' })
  release_leases(held_ids)
  remove_crash_signs(held_ids)
  redis.call('HSET', KEYS.failures, unpack(failures))
  end_cancelled(now, cancelled)
  schedule_due(KEYS.retry, again)
end
-- flow:
release_leases(successors.ids)
start_successors(successors)
if settle_limits() then
  wake_server()
end
count(now, 'failed', #successors.ids)
-- end flow
count(now, 'failed', #held)
count(now, 'retried', #again / 2)
count(now, 'lost', lost)
publish_ended()
return replies
