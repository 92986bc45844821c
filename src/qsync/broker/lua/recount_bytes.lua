#!lua flags=allow-oom
-- recount_bytes: compute the size of all messages again, for a queue with a bound on bytes.
-- include: check_schema preconditions clock queue_bounds
-- KEYS[1] meta       hash    bounds, !bounds, bytes
-- KEYS[2] tasks      hash    id -> message
-- KEYS[3] pending    zset    ids by order tag
-- KEYS[4] limited    zset    ids by order tag
-- KEYS[5] scheduled  zset    ids by due time
-- KEYS[6] retry      zset    ids by due time
-- KEYS[7] active     zset    ids by lease expiry
-- KEYS[8] completed  zset    ids by end of retention
-- KEYS[9] dead       zset    ids by time of death
-- returns 1 when the number was wrong
check_schema()
check_hash(KEYS.tasks)
local known = redis.call('HGET', KEYS.meta, 'bytes')
if not known then
  return 0
end
local bytes = to_text(count_bytes())
redis.call('HSET', KEYS.meta, 'bytes', bytes)
return bytes == known and 0 or 1
