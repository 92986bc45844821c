#!lua flags=no-writes
-- counts: read the sizes of a queue's keys, and its counters.
-- include: check_schema count_cancelled
-- KEYS[1] scheduled  zset    ids by due time
-- KEYS[2] pending    zset    ids by order tag
-- KEYS[3] active     zset    ids by lease expiry
-- KEYS[4] retry      zset    ids by due time
-- KEYS[5] completed  zset    ids by end of retention
-- KEYS[6] dead       zset    ids by time of death
-- KEYS[7] fairness   zset    fairness keys by last tag
-- KEYS[8] tasks      hash    id -> message
-- KEYS[9] owner      hash    id -> lease token
-- KEYS[10] crashes   hash    id -> crash count
-- KEYS[11] failures  hash    id -> failure record
-- KEYS[12] results   hash    id -> result record
-- KEYS[13] unique    hash    locks
-- KEYS[14] keys      hash    id -> fairness key
-- KEYS[15] fetches   hash    server id -> last fetch
-- KEYS[16] ticks     hash    schedule -> last tick enqueued, us
-- KEYS[17] cancels   hash    id -> retention us
-- KEYS[18] progress  hash    id -> done/total, or @<us> at which it became runnable
-- KEYS[19] calls     hash    sender -> its last enqueue
-- KEYS[20] schedules hash    published schedules
-- KEYS[21] recent    zset    ids that callers chose, by expiry time
-- KEYS[22] next_ticks zset   stored schedules by next tick
-- KEYS[23] stored_schedules hash  schedules that clients put
-- KEYS[24] stats     hash    counters, in all and per day
-- KEYS[25] meta      hash    schema
-- returns the sizes of all keys but stats and meta, in this order; the counters, name and value in
--   turn; and the number of completed tasks that were cancelled
check_schema()
local sizes = {}
for _, set_key in ipairs({
  KEYS.scheduled, KEYS.pending, KEYS.active, KEYS.retry, KEYS.completed, KEYS.dead, KEYS.fairness,
}) do
  sizes[#sizes + 1] = redis.call('ZCARD', set_key)
end
for _, hash_key in ipairs({
  KEYS.tasks, KEYS.owner, KEYS.crashes, KEYS.failures, KEYS.results, KEYS.unique, KEYS.keys,
  KEYS.fetches, KEYS.ticks, KEYS.cancels, KEYS.progress, KEYS.calls, KEYS.schedules,
}) do
  sizes[#sizes + 1] = redis.call('HLEN', hash_key)
end
sizes[#sizes + 1] = redis.call('ZCARD', KEYS.recent)
sizes[#sizes + 1] = redis.call('ZCARD', KEYS.next_ticks)
sizes[#sizes + 1] = redis.call('HLEN', KEYS.stored_schedules)
local cancelled = count_cancelled()
return { sizes, redis.call('HGETALL', KEYS.stats), cancelled }
