#!lua
-- tick: enqueue the task of a schedule's tick, unless this tick or a later one was enqueued before.
-- The ticks of a paused schedule are skipped.
-- include: schema guard begin clock wake count tags lock due store
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
-- ARGV[1] now        int us  empty: the store's clock
-- ARGV[2] head       bytes   first bytes of each message, in front of the time stamp
-- ARGV[3] schedule   text    its name
-- ARGV[4] tick       int us
-- ARGV[5...] three, as for enqueue with that stride: id, message, options
-- returns passed (the tick is not later than the last one) or paused, and the id; else created,
--   exists or duplicate, and the id that holds the id or lock
local k = {
  tasks = KEYS[1], pending = KEYS[2], scheduled = KEYS[3], unique = KEYS[4], keys = KEYS[5],
  fairness = KEYS[6], wake = KEYS[7], meta = KEYS[8], stats = KEYS[9],
  idle = KEYS[12],
}
local known = redis.call('HMGET', k.meta, 'schema', 'v')
begin_schema(k.meta, known[1])
local last = redis.call('HGET', KEYS[10], ARGV[3])
if digits(last, -1) >= tonumber(ARGV[4]) then
  return { 'passed', ARGV[5] }
end
if redis.call('HEXISTS', KEYS[11], '!' .. ARGV[3]) == 1 then
  redis.call('HSET', KEYS[10], ARGV[3], ARGV[4])
  return { 'paused', ARGV[5] }
end
local tasks = read_tasks(ARGV, 5, 3)
local _, others = store_tasks(k, clock(ARGV[1]), ARGV[2], tasks, known[2])
redis.call('HSET', KEYS[10], ARGV[3], ARGV[4])
return replies_of(tasks.ids, others)
