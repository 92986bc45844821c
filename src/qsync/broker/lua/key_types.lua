#!lua flags=no-writes
-- key_types: read the types of a queue's keys, and the length of its wake list.
-- include: check_schema
-- KEYS[1] tasks      hash    id -> message
-- KEYS[2] scheduled  zset    ids by due time, us
-- KEYS[3] pending    zset    ids by order tag
-- KEYS[4] active     zset    ids by lease expiry, us
-- KEYS[5] retry      zset    ids by due time, us
-- KEYS[6] completed  zset    ids by end of retention, us
-- KEYS[7] dead       zset    ids by time of death, us
-- KEYS[8] owner      hash    id -> lease token, <server id>/<fetch number>
-- KEYS[9] crashes    hash    id -> crash count and sign, see include/crash_counts.lua
-- KEYS[10] failures  hash    id -> failure record, opaque to the scripts
-- KEYS[11] results   hash    id -> result record of a completed task
-- KEYS[12] unique    hash    =<lock> -> <end of window, us>:<id>, and @<id> -> lock
-- KEYS[13] keys      hash    id -> fairness key, only for tasks that have one
-- KEYS[14] fairness  zset    fairness key by its last order tag
-- KEYS[15] fetches   hash    server id -> last fetch: number, time, ids
-- KEYS[16] ticks     hash    schedule -> last tick enqueued, us
-- KEYS[17] cancels   hash    id -> retention, us: cancel requests and cancelled tasks
-- KEYS[18] progress  hash    id -> <done>/<total>, or @<us> at which it became runnable
-- KEYS[19] wake      list    at most one element
-- KEYS[20] meta      hash    paused, weight:<fairness key>, v (virtual time), swept, cursor, day
-- KEYS[21] stats     hash    counters, and <counter>:<day number> for 90 days
-- KEYS[22] calls     hash    sender -> its last enqueue
-- KEYS[23] schedules hash    published schedules
-- KEYS[24] recent    zset    ids that callers chose, by expiry time
-- KEYS[25] idle      zset    ids of servers that a message wakes
-- KEYS[26] stored_schedules hash  schedules that clients put
-- KEYS[27] next_ticks zset   these schedules by next tick, us
-- KEYS[28] limited   zset    ids by order tag
-- KEYS[29] waiters   zset    limit and id of each limited task
-- KEYS[30] holds     hash    id -> its limits, of unfinished tasks
-- KEYS[31] limits    hash    limit -> its state
-- KEYS[32] limit_rules hash    name -> its rule
-- KEYS[33] openings  zset    limits by the time at which they open, us
-- KEYS[34] successors  hash    id -> due us, member and message of its next run
-- KEYS[35] events    stream  actions of operators
-- KEYS[36] type_reports hash  <minute>:<server> -> counts by type
-- KEYS[37] type_stats hash   statistics of types
-- KEYS[38] schedule_runs hash  schedule -> its last runs
-- returns the type of each key in this order, `none` for a key that does not exist; and the length
-- of the wake list, 0 if it is not a list
check_schema()
local kinds = {}
for _, any_key in ipairs({
  KEYS.tasks, KEYS.scheduled, KEYS.pending, KEYS.active, KEYS.retry, KEYS.completed, KEYS.dead,
  KEYS.owner, KEYS.crashes, KEYS.failures, KEYS.results, KEYS.unique, KEYS.keys, KEYS.fairness,
  KEYS.fetches, KEYS.ticks, KEYS.cancels, KEYS.progress, KEYS.wake, KEYS.meta, KEYS.stats,
  KEYS.calls, KEYS.schedules, KEYS.recent, KEYS.idle,
  KEYS.stored_schedules, KEYS.next_ticks, KEYS.limited, KEYS.waiters, KEYS.holds, KEYS.limits,
  KEYS.limit_rules, KEYS.openings, KEYS.successors, KEYS.events, KEYS.type_reports,
  KEYS.type_stats, KEYS.schedule_runs,
}) do
  kinds[#kinds + 1] = redis.call('TYPE', any_key).ok
end
local length = redis.pcall('LLEN', KEYS.wake)
return { kinds, type(length) == 'number' and length or 0 }
