#!lua
-- enqueue: store new tasks and put their ids into `pending` or `scheduled`. When the store is out
-- of memory, it refuses the whole call and writes nothing.
-- A repeated call writes nothing and returns the same reply. If the call has a sender, this holds
-- even after its tasks have left the queue.
-- variants: plain flow
-- include: check_schema preconditions ensure_schema clock wake_server counters
-- flow include: message_limits limit_states waiter_entries limit_waiters priority_bands
-- include: fairness_tags unique_locks schedule_due enqueue_replay recent_ids
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
-- KEYS[10] calls     hash    sender -> record of its last call
-- KEYS[11] recent  zset    ids that callers chose, by expiry time
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
-- flow KEYS[27] done       channel of ended tasks
-- ARGV[1] now        int us  empty: the store's clock
-- ARGV[2] head       bytes   first bytes of each message, in front of the time stamp
-- ARGV[3] sender     text    id of the sender, which has one call in flight at a time; empty: none
-- ARGV[4] number     int     number of this call; rises per sender
-- ARGV[5] stride     int     2 when no task has options, else 3
-- ARGV[6...] two values per task: id, message; with a stride of 3 also options (empty, or msgpack
--   [due, fairness key, lock, window us, us for which the id is remembered])
-- returns a flat list, two values per task, in order: created | exists | duplicate | repeated, and
--   the id that holds the id or lock; repeated: the id was enqueued recently and is not in the
--   queue, because its task has left the queue or was merged into the holder of its lock; just `created` when all tasks were created; an empty list when the sender has made a
--   later call, since no caller then waits for the reply
local tasks = read_tasks(ARGV, 6, tonumber(ARGV.stride))
if #tasks.ids == 0 then
  return {}
end
local known = redis.call('HMGET', KEYS.meta, 'schema', 'v')
ensure_schema(known[1])
local now, sender, number = clock(ARGV.now), ARGV.sender, tonumber(ARGV.number)
if sender ~= '' then
  local before, last = last_call(sender)
  if number < before then
    return {}
  end
  if number == before then
    return replies_of(tasks.ids, refused_of(last))
  end
end
local times = remembered_times(tasks)
local recent = recent_places(now, tasks, times)
local created, others = insert_tasks(now, ARGV.head, tasks, known[2], recent)
-- flow:
for at = 2, #others, 3 do
  created = created + (others[at] == 'replaced' and 1 or 0)
end
-- end flow
if created > 0 then
  remember(now, tasks, times, others)
end
-- Also record a call that creates no task because its tasks exist already, since these tasks may
-- have left the queue when the call is repeated.
-- flow:
if sender ~= '' and (created > 0 or #others < 3 * #tasks.ids) then
-- plain:
if sender ~= '' and #others < 3 * #tasks.ids then
-- end flow
  keep_call(sender, number, now, others)
end
return #others == 0 and 'created' or replies_of(tasks.ids, others)
