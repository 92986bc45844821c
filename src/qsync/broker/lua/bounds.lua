#!lua flags=no-writes
-- bounds: read the bounds of a queue, and how close it is to them.
-- include: check_schema clock queue_bounds
-- KEYS[1] meta       hash    bounds, !bounds, bytes
-- KEYS[2] tasks      hash    id -> message
-- KEYS[3] pending    zset    ids by order tag
-- KEYS[4] limited    zset    ids by order tag
-- KEYS[5] scheduled  zset    ids by due time
-- KEYS[6] retry      zset    ids by due time
-- KEYS[7] active     zset    ids by lease expiry
-- KEYS[8] completed  zset    ids by end of retention
-- KEYS[9] dead       zset    ids by time of death
-- ARGV[1] counted    flag    whether to count the bytes of all messages
-- returns the bounds of the program and of an operator, as set_bounds stores them, empty without;
--   the number of waiting tasks; the size of all messages, -1 when the queue does not keep it; and
--   the same counted, -1 without `counted`
check_schema()
local known = redis.call('HMGET', KEYS.meta, 'bounds', '!bounds', 'bytes')
return {
  known[1] or '', known[2] or '', count_waiting(), parse_int(known[3], -1),
  ARGV.counted == '1' and count_bytes() or -1,
}
