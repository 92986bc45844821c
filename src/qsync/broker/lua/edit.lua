#!lua
-- edit: replace the message of a scheduled, retry or dead task, and run the task or change its due
-- time. The script changes nothing unless the task still has the message that the caller saw. A
-- repeated call finds the message that the first call wrote, and writes it again. If the first call
-- ran the task, the repeated call finds it in another state.
-- include: check_schema preconditions clock wake_server
-- include: message_limits limit_states waiter_entries limit_waiters
-- include: priority_bands
-- include: fairness_tags unique_locks revive_dead schedule_due note_runnable message_bytes
-- include: record_event
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
-- KEYS[12] meta      hash    virtual time, weights, bytes
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
-- ARGV[3] id         text
-- ARGV[4] state      text    state in which the caller saw it: scheduled | retry | dead
-- ARGV[5] seen       text    SHA-1 digest of the message that the caller saw, in hex digits
-- ARGV[6] message    bytes   the new message
-- ARGV[7] due        text    for scheduled and retry: `+<us>` after now; empty: unchanged
-- ARGV[8] run        flag    whether to make the task pending now
-- ARGV[9] key        text    for a dead task that is run: its member in `keys`
-- ARGV[10] lock       text    for a dead task that is run: its lock; empty: none
-- ARGV[11] record    bytes   for a dead task that is run: the failure record to keep; empty: none
-- REPLY[1] outcome   text    ok; duplicate: another task holds the lock; changed: the task is in
--   another state or has another message
-- REPLY[2] holder    text    the task that holds the lock
check_schema()
local now, id, is_dead, runs = clock(ARGV.now), ARGV.id, ARGV.state == 'dead', ARGV.run == '1'
local set = ({ scheduled = KEYS.scheduled, retry = KEYS.retry, dead = KEYS.dead })[ARGV.state]
check_set(KEYS.pending)
check_set(KEYS.fairness)
check_hash(KEYS.crashes)
check_hash(KEYS.failures)
check_hash(KEYS.unique)
check_hash(KEYS.keys)
check_rights(KEYS.pending, {
  'HSET', 'HDEL', 'HMGET', 'ZREM', 'ZADD', 'ZRANGE', 'EXISTS', 'HINCRBY',
})
begin_limits(now, is_dead and runs)
local stored = redis.call('HGET', KEYS.tasks, id)
local digest = stored and redis.sha1hex(stored)
if not set or not digest or not redis.call('ZSCORE', set, id)
  or digest ~= ARGV.seen and stored ~= ARGV.message then
  return reply({ outcome = record_event(now, ARGV.event, 0, {}) == 1 and 'ok' or 'changed' })
end
local counts_bytes = keeps_bytes()
if is_dead and runs then
  local holder = ARGV.lock ~= '' and take_lock(now, id, ARGV.lock)
  if holder then
    return reply({ outcome = 'duplicate', holder = holder })
  end
  revive(id, ARGV.key, ARGV.record)
  hold_limits_of(id, ARGV.message)
end
if counts_bytes then
  add_bytes(#ARGV.message - #stored)
end
redis.call('HSET', KEYS.tasks, id, ARGV.message)
if runs then
  redis.call('ZREM', set, id)
  to_pending({ id })
  note_runnable(now, { id })
  settle_limits()
  wake_server()
elseif ARGV.due ~= '' and not is_dead then
  local due = to_text(now + tonumber(ARGV.due))
  schedule_due(set, { due, id })
  note_since({ due, id })
end
record_event(now, ARGV.event, 1, { id })
return reply({ outcome = 'ok' })
