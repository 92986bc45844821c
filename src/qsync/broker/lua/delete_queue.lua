#!lua flags=allow-oom
-- delete_queue: delete all keys of a queue that holds no task and no schedule that a client put.
-- include: check_schema
-- KEYS[1] tasks       hash   id -> message
-- KEYS[2] scheduled   zset   ids by due time
-- KEYS[3] pending     zset   ids by order tag
-- KEYS[4] active      zset   ids by lease expiry
-- KEYS[5] retry       zset   ids by due time
-- KEYS[6] completed   zset   ids by end of retention
-- KEYS[7] dead        zset   ids by time of death
-- KEYS[8] owner       hash   id -> lease token
-- KEYS[9] crashes     hash   id -> crash count
-- KEYS[10] failures   hash   id -> failure record
-- KEYS[11] results    hash   id -> result record
-- KEYS[12] unique     hash   locks
-- KEYS[13] keys       hash   id -> fairness key
-- KEYS[14] fairness   zset   fairness keys by last tag
-- KEYS[15] fetches    hash   server id -> last fetch
-- KEYS[16] calls      hash   sender -> its last enqueue
-- KEYS[17] ticks      hash   schedule -> last tick enqueued, us
-- KEYS[18] schedules  hash   published schedules
-- KEYS[19] cancels    hash   id -> retention us
-- KEYS[20] progress   hash   id -> done/total, or @<us> at which it became runnable
-- KEYS[21] wake       list
-- KEYS[22] meta       hash   paused, virtual time
-- KEYS[23] stats      hash   counters
-- KEYS[24] recent     zset   ids that callers chose, by expiry time
-- KEYS[25] idle      zset    ids of servers that a message wakes
-- KEYS[26] stored_schedules hash  schedule -> its record
-- KEYS[27] next_ticks zset   schedules by next tick, us
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
-- ARGV[1] force      int     1: delete its stored schedules too
-- returns the number of tasks and of such schedules that it holds; 0: the queue was deleted
check_schema()
local held = 0
for _, set_key in ipairs({
  KEYS.scheduled, KEYS.pending, KEYS.limited, KEYS.active, KEYS.retry, KEYS.completed, KEYS.dead,
}) do
  held = held + redis.call('ZCARD', set_key)
end
held = math.max(held, redis.call('HLEN', KEYS.tasks))
if ARGV.force ~= '1' then
  held = held + redis.call('HLEN', KEYS.stored_schedules)
end
if held == 0 then
  redis.call(
    'UNLINK', KEYS.tasks, KEYS.scheduled, KEYS.pending, KEYS.active, KEYS.retry, KEYS.completed,
    KEYS.dead, KEYS.owner, KEYS.crashes, KEYS.failures, KEYS.results, KEYS.unique, KEYS.keys,
    KEYS.fairness, KEYS.fetches, KEYS.calls, KEYS.ticks, KEYS.schedules, KEYS.cancels,
    KEYS.progress, KEYS.wake, KEYS.meta, KEYS.stats, KEYS.recent, KEYS.idle,
    KEYS.stored_schedules, KEYS.next_ticks, KEYS.limited, KEYS.waiters, KEYS.holds, KEYS.limits,
    KEYS.limit_rules, KEYS.openings, KEYS.successors, KEYS.events, KEYS.type_reports,
    KEYS.type_stats, KEYS.schedule_runs
  )
end
return held
