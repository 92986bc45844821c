#!lua flags=allow-oom
-- complete: remove tasks that succeeded, or keep them for their retention.
-- With results it runs without allow-oom: the store refuses the whole call when it is out of memory.
-- include: schema guard clock count lock ended erase owned since runnable
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
-- ARGV[1] now        int us  empty: the store's clock
-- ARGV[2] stride     int     2 when no task has a retention, else 4
-- ARGV[3...] two values per task: id, token; with a stride of 4 also retention us (empty: none) and
--   result
-- returns one per task: ok | done | lost; or just `ok` when all are ok
local k = {
  tasks = KEYS[1], active = KEYS[2], completed = KEYS[3], owner = KEYS[4], crashes = KEYS[5],
  failures = KEYS[6], results = KEYS[7], unique = KEYS[8], keys = KEYS[9], cancels = KEYS[10],
  progress = KEYS[11], stats = KEYS[12], done = KEYS[13],
}
check_schema(KEYS[14])
local now, stride = clock(ARGV[1]), tonumber(ARGV[2])
local held, held_ids, replies, lost = owned(k.owner, ARGV, 3, stride)
local gone, done, completed, results = {}, {}, {}, {}
for at, i in ipairs(held) do
  local id, retention = held_ids[at], stride == 4 and ARGV[4 * i + 1] or ''
  if retention == '' then
    gone[#gone + 1] = id
  else
    done[#done + 1] = id
    completed[2 * #done - 1], completed[2 * #done] = whole(now + tonumber(retention)), id
    results[2 * #done - 1], results[2 * #done] = id, ARGV[4 * i + 2]
  end
end
if #gone > 0 then
  check_hash(k.tasks)
end
if #done > 0 then
  check_set(k.completed)
  check_hash(k.results)
end
if #held > 0 then
  check_rights(k.tasks, { 'HDEL', 'EXISTS' })
  check_rights(k.tasks, #done > 0 and { 'ZADD', 'HSET' } or {})
end
release(k, held_ids, true) -- those that stay keep their progress
erase(k, now, gone)
if #done > 0 then
  redis.call('ZADD', k.completed, unpack(completed))
  redis.call('HSET', k.results, unpack(results))
  unlock(k.unique, now, done)
  forget_beside(k.keys, done)
  forget_beside(k.cancels, done)
  forget_since(k.progress, done)
  note_ended(done)
end
count(k.stats, now, 'completed', #held)
count(k.stats, now, 'lost', lost)
publish_ended(k.done)
return #held == #replies and 'ok' or replies
