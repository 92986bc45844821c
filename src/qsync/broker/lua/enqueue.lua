#!lua
-- enqueue: store new tasks and put their ids into pending or scheduled.
-- Refused as a whole, with nothing written, when the store is out of memory.
-- Run again with the same arguments it writes nothing and answers the same, also when tasks that it
-- created or found have left the queue meanwhile, if it has a sender.
-- include: schema guard begin clock wake count tags lock due calls recent store
-- KEYS[1] tasks      hash    id -> message
-- KEYS[2] pending    zset    ids by order tag
-- KEYS[3] scheduled  zset    ids by due time
-- KEYS[4] unique     hash    locks
-- KEYS[5] keys       hash    id -> fairness key
-- KEYS[6] fairness   zset    fairness keys by last tag
-- KEYS[7] wake       list
-- KEYS[8] meta       hash    virtual time, weights
-- KEYS[9] stats      hash    counters
-- KEYS[10] calls     hash    sender -> its last call that was answered created for a task
-- KEYS[11] recent  zset    ids that callers chose, by the time until which they are refused
-- KEYS[12] idle      zset    ids of servers that a message wakes
-- ARGV[1] now        int us  empty: the store's clock
-- ARGV[2] head       bytes   what goes before the stamp
-- ARGV[3] sender     text    who numbers its calls, one under way at a time; empty: nobody does
-- ARGV[4] number     int     of this call; rising per sender
-- ARGV[5] stride     int     2 when no task has options, else 3
-- ARGV[6...] two a task: id, message; with a stride of 3 also options (empty, or msgpack [due, key,
--   lock, window us, us for which the id is remembered])
-- returns flat, two a task in order: created | exists | duplicate | repeated, and the id that holds
--   it; repeated is a task whose id was enqueued lately and that has left the queue;
--   just created when that is the answer for all;
--   nothing when the sender has made a later call, and then nobody waits for the answer
local k = {
  tasks = KEYS[1], pending = KEYS[2], scheduled = KEYS[3], unique = KEYS[4], keys = KEYS[5],
  fairness = KEYS[6], wake = KEYS[7], meta = KEYS[8], stats = KEYS[9],
  recent = KEYS[11], idle = KEYS[12],
}
local tasks = read_tasks(ARGV, 6, tonumber(ARGV[5]))
if #tasks.ids == 0 then
  return {}
end
local known = redis.call('HMGET', k.meta, 'schema', 'v')
begin_schema(k.meta, known[1])
local now, sender, number = clock(ARGV[1]), ARGV[3], tonumber(ARGV[4])
if sender ~= '' then
  local before, last = last_call(KEYS[10], sender)
  if number < before then
    return {}
  end
  if number == before then
    return replies_of(tasks.ids, others_of(last))
  end
end
local times = remembered_times(tasks)
local recent = recent_places(k.recent, now, tasks, times)
local created, others = store_tasks(k, now, ARGV[2], tasks, known[2], recent)
if created > 0 then
  remember(k.recent, now, tasks, times, others)
end
-- A call that only found its own tasks is kept as well: they may have left when it comes again.
if sender ~= '' and #others < 3 * #tasks.ids then
  keep_call(KEYS[10], sender, number, now, others)
end
return #others == 0 and 'created' or replies_of(tasks.ids, others)
