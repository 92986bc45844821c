#!lua flags=allow-oom
-- run: move scheduled, retry or dead tasks to `pending` now, in this order. A dead task takes its
-- lock again and gets all its attempts back. Tasks with a limit that is full or closed become
-- limited instead.
-- include: check_schema preconditions clock wake_server
-- include: message_limits limit_states waiter_entries limit_waiters
-- include: priority_bands
-- include: fairness_tags unique_locks revive_dead note_runnable record_event
-- KEYS[1] pending    zset    ids by order tag
-- KEYS[2] scheduled  zset    ids by due time
-- KEYS[3] retry      zset    ids by due time
-- KEYS[4] dead       zset    ids by time of death
-- KEYS[5] tasks      hash    id -> message
-- KEYS[6] crashes    hash    id -> crash count
-- KEYS[7] failures   hash    id -> failure record
-- KEYS[8] unique     hash    locks
-- KEYS[9] keys       hash    id -> fairness key
-- KEYS[10] fairness  zset    fairness keys by last tag
-- KEYS[11] wake      list
-- KEYS[12] meta      hash    virtual time, weights
-- KEYS[13] progress  hash    id -> done/total, or @<us> at which it became runnable
-- KEYS[14] idle      zset    ids of servers that a message wakes
-- KEYS[15] limited   zset    ids by order tag
-- KEYS[16] waiters   zset    limit and id of each limited task
-- KEYS[17] holds     hash    id -> its limits, of unfinished tasks
-- KEYS[18] limits    hash    limit -> its state
-- KEYS[19] limit_rules hash    name -> its rule
-- KEYS[20] openings  zset    limits by the time at which they open, us
-- KEYS[21] events    stream  actions of operators
-- ARGV[1] now        int us  empty: the store's clock
-- ARGV[2] event    bytes   record of the action, see include/record_event.lua; empty: none
-- ARGV[3] state      text    state in which the caller saw them: scheduled | retry | dead
-- ARGV[4...] four values per task: id; and for dead tasks fairness key, lock (empty: none), and the
--   failure record to keep (empty: none)
-- returns a flat list, two values per task: ok and an empty text; or duplicate and the holder of
--   the lock; or changed and an empty text when the task is not in that state
check_schema()
local now, state = clock(ARGV.now), ARGV.state
local set = ({ scheduled = KEYS.scheduled, retry = KEYS.retry, dead = KEYS.dead })[state]

check_set(KEYS.pending)
check_set(KEYS.fairness)
check_hash(KEYS.crashes)
check_hash(KEYS.failures)
check_hash(KEYS.unique)
check_hash(KEYS.keys)
check_rights(KEYS.pending, { 'HSET', 'HDEL', 'HMGET', 'ZREM', 'ZADD', 'EXISTS' })
begin_limits(now, state == 'dead')
local replies, running = {}, {}
for i = 4, #ARGV, 4 do
  local id, key, lock, record = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3]
  local outcome, holder = 'ok', nil
  if not set or not redis.call('ZSCORE', set, id) or redis.call('HEXISTS', KEYS.tasks, id) == 0 then
    outcome = 'changed'
  elseif state == 'dead' then
    holder = lock ~= '' and take_lock(now, id, lock)
    if holder then
      outcome = 'duplicate'
    else
      revive(id, key, record)
      hold_limits_of(id, redis.call('HGET', KEYS.tasks, id))
    end
  end
  if outcome == 'ok' then
    redis.call('ZREM', set, id)
    running[#running + 1] = id
  end
  replies[#replies + 1] = outcome
  replies[#replies + 1] = holder or ''
end
if #running > 0 then
  to_pending(running)
  note_runnable(now, running)
  settle_limits()
  wake_server()
end
if record_event(now, ARGV.event, #running, running) == 1 and #replies == 2 then
  replies[1] = 'ok'
end
return replies
