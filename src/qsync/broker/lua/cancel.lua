#!lua flags=allow-oom
-- cancel: end a task that waits; for an active task record a cancel request, which its server reads.
-- include: schema guard clock count lock ended erase
-- KEYS[1] tasks      hash    id -> message
-- KEYS[2] pending    zset    ids by order tag
-- KEYS[3] scheduled  zset    ids by due time
-- KEYS[4] active     zset    ids by lease expiry
-- KEYS[5] retry      zset    ids by due time
-- KEYS[6] completed  zset    ids by end of retention
-- KEYS[7] owner      hash    id -> lease token
-- KEYS[8] crashes    hash    id -> crash count
-- KEYS[9] failures   hash    id -> failure record
-- KEYS[10] results   hash    id -> result record
-- KEYS[11] unique    hash    locks
-- KEYS[12] keys      hash    id -> fairness key
-- KEYS[13] cancels   hash    id -> retention us
-- KEYS[14] progress  hash    id -> done/total, or @<us> at which it became runnable
-- KEYS[15] stats     hash    counters
-- KEYS[16] done      channel of ended tasks
-- KEYS[17] meta      hash    schema
-- KEYS[18] recent  zset    ids that callers chose, by expiry time
-- ARGV[1] now        int us  empty: the store's clock
-- ARGV[2] id         text
-- ARGV[3] retention  int us  retention of the task; empty: none
-- returns cancelled (also when an earlier call did it); or active and its lease token; or finished;
--   or missing
local k = {
  tasks = KEYS[1], completed = KEYS[6], crashes = KEYS[8], failures = KEYS[9], results = KEYS[10],
  unique = KEYS[11], keys = KEYS[12], cancels = KEYS[13], progress = KEYS[14], stats = KEYS[15],
  done = KEYS[16],
  recent = KEYS[18],
}
check_schema(KEYS[17])
local now, id = clock(ARGV[1]), ARGV[2]
check_cancelled(k)
for _, set in ipairs({ KEYS[2], KEYS[3], KEYS[5] }) do
  if redis.call('ZSCORE', set, id) then
    check_rights(k.cancels, { 'HSET', 'HGET', 'HDEL', 'HMGET', 'ZADD', 'EXISTS' })
    redis.call('ZREM', set, id)
    redis.call('HSET', k.cancels, id, ARGV[3])
    forget_beside(k.progress, { id })
    end_cancelled(k, now, { id })
    publish_ended(k.done)
    return { 'cancelled', '' }
  end
end
if redis.call('ZSCORE', KEYS[4], id) then
  local owner = redis.call('HGET', KEYS[7], id) or ''
  redis.call('HSET', k.cancels, id, ARGV[3])
  return { 'active', owner }
end
if redis.call('HEXISTS', k.cancels, id) == 1 then
  return { 'cancelled', '' }
end
if redis.call('HEXISTS', k.tasks, id) == 1 then
  return { 'finished', '' }
end
return { 'missing', '' }
