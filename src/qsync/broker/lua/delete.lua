#!lua flags=allow-oom
-- delete: delete tasks in a state other than active.
-- include: check_schema preconditions clock wake_server
-- include: message_limits limit_states waiter_entries limit_waiters
-- flow include: message_bytes
-- include: unique_locks ended_tasks forget_tasks record_event
-- KEYS[1] tasks      hash    id -> message
-- KEYS[2] pending    zset    ids by order tag
-- KEYS[3] scheduled  zset    ids by due time
-- KEYS[4] retry      zset    ids by due time
-- KEYS[5] completed  zset    ids by end of retention
-- KEYS[6] dead       zset    ids by time of death
-- KEYS[7] crashes    hash    id -> crash count
-- KEYS[8] failures   hash    id -> failure record
-- KEYS[9] results    hash    id -> result record
-- KEYS[10] unique    hash    locks
-- KEYS[11] keys      hash    id -> fairness key
-- KEYS[12] cancels   hash    id -> retention us
-- KEYS[13] progress  hash    id -> done/total, or @<us> at which it became runnable
-- KEYS[14] done      channel of ended tasks
-- KEYS[15] meta      hash    schema
-- KEYS[16] recent  zset    ids that callers chose, by expiry time
-- KEYS[17] limited   zset    ids by order tag
-- KEYS[18] successors  hash    id -> due us, member and message of its next run
-- KEYS[19] wake      list
-- KEYS[20] idle      zset    ids of servers that a message wakes
-- KEYS[21] waiters   zset    limit and id of each limited task
-- KEYS[22] holds     hash    id -> its limits, of unfinished tasks
-- KEYS[23] limits    hash    limit -> its state
-- KEYS[24] limit_rules hash    name -> its rule
-- KEYS[25] openings  zset    limits by the time at which they open, us
-- KEYS[26] events    stream  actions of operators
-- ARGV[1] now        int us  empty: the store's clock
-- ARGV[2] event    bytes   record of the action, see include/record_event.lua; empty: none
-- ARGV[3] state      text    state in which the caller saw them
-- ARGV[4...] ids
-- returns the number of deleted tasks
check_schema()
local set = ({
  pending = KEYS.pending, scheduled = KEYS.scheduled, retry = KEYS.retry,
  completed = KEYS.completed, dead = KEYS.dead, limited = KEYS.limited,
})[ARGV.state]
local now, gone = clock(ARGV.now), {}
check_hash(KEYS.tasks)
check_rights(KEYS.tasks, { 'HDEL', 'HMGET', 'EXISTS' })
begin_limits(now)
for i = 4, #ARGV do
  if ARGV.state == 'limited' then
    remove_waiters({ ARGV[i] })
  end
  if set and redis.call('ZREM', set, ARGV[i]) == 1 then
    gone[#gone + 1] = ARGV[i]
  end
end
if ARGV.state == 'pending' then
  release_ready(gone)
end
forget_tasks(now, gone)
if settle_limits() then
  wake_server()
end
forget_recent_ids(gone)
note_ended(gone)
publish_ended()
return record_event(now, ARGV.event, #gone, gone)
