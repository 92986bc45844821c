#!lua flags=allow-oom
-- cancel: end a waiting task; for an active task, record a cancel request, which its server reads.
-- include: check_schema preconditions clock wake_server
-- include: message_limits limit_states waiter_entries limit_waiters
-- flow include: message_bytes
-- include: counters unique_locks ended_tasks forget_tasks record_event client_calls
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
-- KEYS[19] limited   zset    ids by order tag
-- KEYS[20] successors  hash    id -> due us, member and message of its next run
-- KEYS[21] wake      list
-- KEYS[22] idle      zset    ids of servers that a message wakes
-- KEYS[23] waiters   zset    limit and id of each limited task
-- KEYS[24] holds     hash    id -> its limits, of unfinished tasks
-- KEYS[25] limits    hash    limit -> its state
-- KEYS[26] limit_rules hash    name -> its rule
-- KEYS[27] openings  zset    limits by the time at which they open, us
-- KEYS[28] events    stream  actions of operators
-- KEYS[29] calls     hash    sender -> its last call
-- ARGV[1] now        int us  empty: the store's clock
-- ARGV[2] event    bytes   record of the action, see include/record_event.lua; empty: none
-- ARGV[3] id         text
-- ARGV[4] retention  int us  retention of the task; empty: none
-- ARGV[5] sender     text    of a client, which numbers its calls; empty: none
-- ARGV[6] number     int
-- returns cancelled (even if an earlier call cancelled it); or active and its lease token; or
-- finished; or missing
check_schema()
local now, id = clock(ARGV.now), ARGV.id
if first_call(ARGV.sender, ARGV.number) and redis.call('HEXISTS', KEYS.cancels, id) == 0 then
  return { 'cancelled', '' }  -- another task has this id now
end
check_end_cancelled()
begin_limits(now)
for _, set in ipairs({ KEYS.pending, KEYS.scheduled, KEYS.retry, KEYS.limited }) do
  if redis.call('ZSCORE', set, id) then
    check_rights(KEYS.cancels, { 'HSET', 'HGET', 'HDEL', 'HMGET', 'ZADD', 'EXISTS' })
    if set == KEYS.limited then
      remove_waiters({ id })
    elseif set == KEYS.pending then
      release_ready({ id })
    end
    redis.call('ZREM', set, id)
    redis.call('HSET', KEYS.cancels, id, ARGV.retention)
    delete_fields(KEYS.progress, { id })
    end_cancelled(now, { id })
    if settle_limits() then
      wake_server()
    end
    publish_ended()
    note_call(now, ARGV.sender, ARGV.number)
    record_event(now, ARGV.event, 1, { id })
    return { 'cancelled', '' }
  end
end
if redis.call('ZSCORE', KEYS.active, id) then
  local owner = redis.call('HGET', KEYS.owner, id) or ''
  check_hash(KEYS.successors)
  check_rights(KEYS.cancels, { 'HSET', 'HDEL' })
  redis.call('HDEL', KEYS.successors, id)
  local added = redis.call('HSET', KEYS.cancels, id, ARGV.retention)
  note_call(now, ARGV.sender, ARGV.number)
  record_event(now, ARGV.event, added, { id })
  return { 'active', owner }
end
if redis.call('HEXISTS', KEYS.cancels, id) == 1 or record_event(now, ARGV.event, 0, {}) == 1 then
  return { 'cancelled', '' }
end
return { redis.call('HEXISTS', KEYS.tasks, id) == 1 and 'finished' or 'missing', '' }
