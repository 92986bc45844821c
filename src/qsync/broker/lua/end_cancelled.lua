#!lua flags=allow-oom
-- end_cancelled: end tasks whose handler was stopped because of a cancel request.
-- variants: plain flow
-- include: check_schema preconditions clock
-- flow include: wake_server message_limits limit_states waiter_entries limit_waiters
-- flow include: message_bytes
-- include: counters unique_locks ended_tasks forget_tasks
-- include: check_leases
-- flow include: schedule_due note_runnable successors start_successors
-- KEYS[1] tasks      hash    id -> message
-- KEYS[2] active     zset    ids by lease expiry
-- KEYS[3] completed  zset    ids by end of retention
-- KEYS[4] owner      hash    id -> lease token
-- KEYS[5] crashes    hash    id -> crash count
-- KEYS[6] failures   hash    id -> failure record
-- KEYS[7] results    hash    id -> result record
-- KEYS[8] unique     hash    locks
-- KEYS[9] keys       hash    id -> fairness key
-- KEYS[10] cancels   hash    id -> retention us
-- KEYS[11] progress  hash    id -> done/total, or @<us> at which it became runnable
-- KEYS[12] stats     hash    counters
-- KEYS[13] done      channel of ended tasks
-- KEYS[14] meta      hash    schema
-- KEYS[15] recent  zset    ids that callers chose, by expiry time
-- flow KEYS[16] scheduled  zset    ids by due time
-- flow KEYS[17] wake  list
-- flow KEYS[18] idle  zset    ids of servers that a message wakes
-- flow KEYS[19] successors  hash    id -> due us, member and message of its next run
-- flow KEYS[20] pending   zset    ids by order tag
-- flow KEYS[21] limited   zset    ids by order tag
-- flow KEYS[22] waiters   zset    limit and id of each limited task
-- flow KEYS[23] holds     hash    id -> its limits, of unfinished tasks
-- flow KEYS[24] limits    hash    limit -> its state
-- flow KEYS[25] limit_rules hash    name -> its rule
-- flow KEYS[26] openings  zset    limits by the time at which they open, us
-- ARGV[1] now        int us  empty: the store's clock
-- ARGV[2...] two values per task: id, token
-- returns one outcome per task: ok | done | lost
check_schema()
local now = clock(ARGV.now)
-- flow:
local held, held_ids, replies = check_leases(ARGV, 2, 2)
local successors
successors, held, held_ids = split_successors(held, held_ids)
-- plain:
local _, held_ids, replies = check_leases(ARGV, 2, 2)
-- end flow
check_end_cancelled()
check_rights(KEYS.tasks, { 'HDEL', 'HGET', 'ZADD' })
-- flow:
begin_limits(now, #successors.ids > 0)
-- end flow
release_leases(held_ids)
-- flow:
release_leases(successors.ids)
start_successors(successors)
count(now, 'cancelled', #successors.ids)
count(now, 'enqueued', #successors.ids)
-- end flow
end_cancelled(now, held_ids)
-- flow:
if settle_limits() then
  wake_server()
end
-- end flow
publish_ended()
return replies
