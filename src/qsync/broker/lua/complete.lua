#!lua flags=allow-oom
-- complete: remove tasks that succeeded, or keep them for their retention.
-- With results, the script runs without allow-oom, which means that a store that is out of memory
-- refuses the whole call.
-- variants: plain flow
-- include: check_schema preconditions clock
-- flow include: wake_server message_limits limit_states waiter_entries limit_waiters
-- flow include: message_bytes
-- include: counters unique_locks ended_tasks forget_tasks
-- include: check_leases runnable_since note_runnable
-- flow include: schedule_due successors start_successors
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
-- flow KEYS[15] scheduled  zset    ids by due time
-- flow KEYS[16] wake  list
-- flow KEYS[17] idle  zset    ids of servers that a message wakes
-- flow KEYS[18] successors  hash    id -> due us, member and message of its next run
-- flow KEYS[19] pending   zset    ids by order tag
-- flow KEYS[20] limited   zset    ids by order tag
-- flow KEYS[21] waiters   zset    limit and id of each limited task
-- flow KEYS[22] holds     hash    id -> its limits, of unfinished tasks
-- flow KEYS[23] limits    hash    limit -> its state
-- flow KEYS[24] limit_rules hash    name -> its rule
-- flow KEYS[25] openings  zset    limits by the time at which they open, us
-- ARGV[1] now        int us  empty: the store's clock
-- ARGV[2] stride     int     2 when no task has a retention, else 4
-- ARGV[3...] two values per task: id, token; with a stride of 4 also retention us (empty: none) and
--   result
-- returns one outcome per task: ok | done | lost; or just `ok` when all are ok
check_schema()
local now, stride = clock(ARGV.now), tonumber(ARGV.stride)
local held, held_ids, replies, lost = check_leases(ARGV, 3, stride)
-- flow:
local successors
successors, held, held_ids = split_successors(held, held_ids)
-- end flow
local gone, done, completed, results = {}, {}, {}, {}
for at, i in ipairs(held) do
  local id, retention = held_ids[at], stride == 4 and ARGV[4 * i + 1] or ''
  if retention == '' then
    gone[#gone + 1] = id
  else
    done[#done + 1] = id
    completed[2 * #done - 1], completed[2 * #done] = to_text(now + tonumber(retention)), id
    results[2 * #done - 1], results[2 * #done] = id, ARGV[4 * i + 2]
  end
end
if #gone > 0 then
  check_hash(KEYS.tasks)
end
if #done > 0 then
  check_set(KEYS.completed)
  check_hash(KEYS.results)
end
local bare = #held > 0 and not has_records()
if #held > 0 then
  check_rights(KEYS.tasks, #done > 0 and { 'HDEL', 'ZADD', 'HSET' } or { 'HDEL' })
end
-- flow:
begin_limits(now, #successors.ids > 0)
-- end flow
release_leases(held_ids, true) -- those that stay keep their progress
-- flow:
release_leases(successors.ids)
start_successors(successors)
count(now, 'completed', #successors.ids)
count(now, 'enqueued', #successors.ids)
-- end flow
forget_tasks(now, gone, bare)
if #done > 0 then
  redis.call('ZADD', KEYS.completed, unpack(completed))
  redis.call('HSET', KEYS.results, unpack(results))
  -- flow:
  drop_holds(done)
  -- end flow
  unlock(now, done)
  delete_fields(KEYS.keys, done)
  delete_fields(KEYS.cancels, done)
  forget_since(done)
  note_ended(done)
end
-- flow:
if settle_limits() then
  wake_server()
end
-- end flow
count(now, 'completed', #held)
count(now, 'lost', lost)
publish_ended()
return #held == #replies and 'ok' or replies
