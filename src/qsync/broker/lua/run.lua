#!lua flags=allow-oom
-- run: a task that waits for its time, or is dead, goes to pending now.
-- A dead one takes its lock again, and starts with all its attempts.
-- include: clock wake tags lock
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
-- ARGV[1] now        int us  empty: the store's clock
-- ARGV[2] id         text
-- ARGV[3] state      text    that the caller saw it in: scheduled | retry | dead
-- ARGV[4] key        text    fairness key; used for dead ones
-- ARGV[5] lock       text    used for dead ones; empty: none
-- returns ok; or duplicate and the holder of the lock; or changed when it is not in that state
local now, id, state = clock(ARGV[1]), ARGV[2], ARGV[3]
local set = ({ scheduled = KEYS[2], retry = KEYS[3], dead = KEYS[4] })[state]
if not set or not redis.call('ZSCORE', set, id) or redis.call('HEXISTS', KEYS[5], id) == 0 then
  return { 'changed', '' }
end
if state == 'dead' then
  if ARGV[5] ~= '' then
    local held = redis.call('HGET', KEYS[8], '=' .. ARGV[5])
    local holder = lock_holder(KEYS[8], now, ARGV[5], held)
    if holder and holder ~= id then
      return { 'duplicate', holder }
    end
    -- A window of its own that still runs goes on.
    local ends = holder and read_lock(held) or 0
    redis.call('HSET', KEYS[8], lock_fields(ARGV[5], ends, id))
  end
  redis.call('HDEL', KEYS[6], id)
  redis.call('HDEL', KEYS[7], id)
  if ARGV[4] ~= '' then
    redis.call('HSET', KEYS[9], id, ARGV[4])
  end
end
redis.call('ZREM', set, id)
to_pending(KEYS[1], KEYS[12], KEYS[10], KEYS[9], { id })
wake(KEYS[11])
return { 'ok', '' }
