#!lua flags=no-writes
-- counts: read the sizes of a queue's keys, and its counters.
-- include: check_schema count_cancelled
-- KEYS[1] scheduled  zset    ids by due time
-- KEYS[2] pending    zset    ids by order tag
-- KEYS[3] limited   zset    ids by order tag
-- KEYS[4] active     zset    ids by lease expiry
-- KEYS[5] retry      zset    ids by due time
-- KEYS[6] completed  zset    ids by end of retention
-- KEYS[7] dead       zset    ids by time of death
-- KEYS[8] fairness   zset    fairness keys by last tag
-- KEYS[9] tasks      hash    id -> message
-- KEYS[10] owner      hash    id -> lease token
-- KEYS[11] crashes   hash    id -> crash count
-- KEYS[12] failures  hash    id -> failure record
-- KEYS[13] results   hash    id -> result record
-- KEYS[14] unique    hash    locks
-- KEYS[15] keys      hash    id -> fairness key
-- KEYS[16] fetches   hash    server id -> last fetch
-- KEYS[17] ticks     hash    schedule -> last tick enqueued, us
-- KEYS[18] cancels   hash    id -> retention us
-- KEYS[19] progress  hash    id -> done/total, or @<us> at which it became runnable
-- KEYS[20] calls     hash    sender -> its last enqueue
-- KEYS[21] schedules hash    published schedules
-- KEYS[22] recent    zset    ids that callers chose, by expiry time
-- KEYS[23] next_ticks zset   stored schedules by next tick
-- KEYS[24] stored_schedules hash  schedules that clients put
-- KEYS[25] waiters   zset    limit and id of each limited task
-- KEYS[26] openings  zset    limits by the time at which they open, us
-- KEYS[27] holds     hash    id -> its limits, of unfinished tasks
-- KEYS[28] limits    hash    limit -> its state
-- KEYS[29] limit_rules hash    name -> its rule
-- KEYS[30] successors hash    id -> its next run
-- KEYS[31] type_reports hash  <minute>:<server> -> counts by type
-- KEYS[32] type_stats hash   statistics of types
-- KEYS[33] events    stream  actions of operators
-- KEYS[34] schedule_runs hash  schedule -> its last runs
-- KEYS[35] stats     hash    counters, in all and per day
-- KEYS[36] meta      hash    schema, tally
-- returns the sizes of all keys except stats and meta, in this order; the counters, name and value
-- in
--   turn; the number of completed tasks that were cancelled; and the day and sum of the tally
check_schema()
local sizes = {}
for _, set_key in ipairs({
  KEYS.scheduled, KEYS.pending, KEYS.limited, KEYS.active, KEYS.retry, KEYS.completed, KEYS.dead,
  KEYS.fairness,
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
for _, set_key in ipairs({ KEYS.waiters, KEYS.openings }) do
  sizes[#sizes + 1] = redis.call('ZCARD', set_key)
end
for _, hash_key in ipairs({
  KEYS.holds, KEYS.limits, KEYS.limit_rules, KEYS.successors, KEYS.type_reports, KEYS.type_stats,
}) do
  sizes[#sizes + 1] = redis.call('HLEN', hash_key)
end
local length = redis.pcall('XLEN', KEYS.events)
sizes[#sizes + 1] = type(length) == 'number' and length or 0
sizes[#sizes + 1] = redis.call('HLEN', KEYS.schedule_runs)
local cancelled = count_cancelled()
local tally = redis.call('HMGET', KEYS.meta, 'tally_day', 'tally')
return {
  sizes, redis.call('HGETALL', KEYS.stats), cancelled, { tally[1] or '', tally[2] or '' },
}
