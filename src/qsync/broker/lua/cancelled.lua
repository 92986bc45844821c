#!lua flags=allow-oom
-- cancelled: end tasks whose handler was stopped because of a cancel request.
-- include: schema guard clock count lock ended erase owned
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
-- ARGV[1] now        int us  empty: the store's clock
-- ARGV[2...] two values per task: id, token
-- returns one per task: ok | done | lost
local k = {
  tasks = KEYS[1], active = KEYS[2], completed = KEYS[3], owner = KEYS[4], crashes = KEYS[5],
  failures = KEYS[6], results = KEYS[7], unique = KEYS[8], keys = KEYS[9], cancels = KEYS[10],
  progress = KEYS[11], stats = KEYS[12], done = KEYS[13],
  recent = KEYS[15],
}
check_schema(KEYS[14])
local now = clock(ARGV[1])
local _, held_ids, replies = owned(k.owner, ARGV, 2, 2)
check_cancelled(k)
check_rights(k.tasks, { 'HDEL', 'HGET', 'ZADD' })
release(k, held_ids)
end_cancelled(k, now, held_ids)
publish_ended(k.done)
return replies
