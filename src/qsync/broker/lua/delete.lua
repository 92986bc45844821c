#!lua flags=allow-oom
-- delete: delete tasks in a state other than active.
-- include: check_schema preconditions clock unique_locks ended_tasks forget_tasks
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
-- ARGV[1] now        int us  empty: the store's clock
-- ARGV[2] state      text    state in which the caller saw them
-- ARGV[3...] ids
-- returns the number of deleted tasks
check_schema()
local set = ({
  pending = KEYS.pending, scheduled = KEYS.scheduled, retry = KEYS.retry,
  completed = KEYS.completed, dead = KEYS.dead, limited = KEYS.limited,
})[ARGV.state]
local now, gone = clock(ARGV.now), {}
check_hash(KEYS.tasks)
check_rights(KEYS.tasks, { 'HDEL', 'HMGET', 'EXISTS' })
for i = 3, #ARGV do
  if set and redis.call('ZREM', set, ARGV[i]) == 1 then
    gone[#gone + 1] = ARGV[i]
  end
end
forget_tasks(now, gone)
forget_recent_ids(gone)
note_ended(gone)
publish_ended()
return #gone
