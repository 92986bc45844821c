#!lua
-- tick: enqueue the task of a schedule's tick, unless this tick or a later one was enqueued before.
-- The ticks of a paused schedule are skipped.
-- variants: plain flow
-- include: check_schema preconditions ensure_schema clock wake_server counters
-- flow include: message_limits limit_states waiter_entries limit_waiters priority_bands
-- include: fairness_tags unique_locks schedule_due
-- flow include: note_runnable successors message_bytes ended_tasks forget_tasks
-- flow include: queue_bounds replace_holder
-- include: insert_tasks
-- KEYS[1] tasks      hash    id -> message
-- KEYS[2] pending    zset    ids by order tag
-- KEYS[3] scheduled  zset    ids by due time
-- KEYS[4] unique     hash    locks
-- KEYS[5] keys       hash    id -> fairness key
-- KEYS[6] fairness   zset    fairness keys by last tag
-- KEYS[7] wake       list
-- KEYS[8] meta       hash    virtual time, weights
-- KEYS[9] stats      hash    counters
-- KEYS[10] ticks     hash    schedule -> last tick enqueued, us
-- KEYS[11] schedules hash    !<schedule> while it is paused
-- KEYS[12] idle      zset    ids of servers that a message wakes
-- flow KEYS[13] retry  zset    ids by due time
-- flow KEYS[14] active  zset    ids by lease expiry
-- flow KEYS[15] failures  hash    id -> failure record
-- flow KEYS[16] progress  hash    id -> done/total, or @<us> at which it became runnable
-- flow KEYS[17] successors  hash    id -> due us, member and message of its next run
-- flow KEYS[18] limited   zset    ids by order tag
-- flow KEYS[19] waiters   zset    limit and id of each limited task
-- flow KEYS[20] holds     hash    id -> its limits, of unfinished tasks
-- flow KEYS[21] limits    hash    limit -> its state
-- flow KEYS[22] limit_rules hash    name -> its rule
-- flow KEYS[23] openings  zset    limits by the time at which they open, us
-- flow KEYS[24] crashes    hash    id -> crash count
-- flow KEYS[25] results    hash    id -> result record
-- flow KEYS[26] cancels    hash    id -> retention us
-- flow KEYS[27] recent     zset    ids that callers chose, by expiry time
-- flow KEYS[28] done       channel of ended tasks
-- ARGV[1] now        int us  empty: the store's clock
-- ARGV[2] head       bytes   first bytes of each message, in front of the time stamp
-- ARGV[3] schedule   text    its name
-- ARGV[4] tick       int us
-- ARGV[5...] three values, as for enqueue with a stride of 3: id, message, options
-- returns passed (the tick is not later than the last one) or paused, and the id; else created,
--   exists or duplicate, and the id that holds the id or lock
local known = redis.call('HMGET', KEYS.meta, 'schema', 'v')
is_current_schema(known[1])
local last = redis.call('HGET', KEYS.ticks, ARGV.schedule)
if parse_int(last, -1) >= tonumber(ARGV.tick) then
  return { 'passed', ARGV[5] }
end
ensure_schema(known[1])
if redis.call('HEXISTS', KEYS.schedules, '!' .. ARGV.schedule) == 1 then
  redis.call('HSET', KEYS.ticks, ARGV.schedule, ARGV.tick)
  return { 'paused', ARGV[5] }
end
local tasks = read_tasks(ARGV, 5, 3)
local _, others = insert_tasks(clock(ARGV.now), ARGV.head, tasks, known[2])
redis.call('HSET', KEYS.ticks, ARGV.schedule, ARGV.tick)
return replies_of(tasks.ids, others)
