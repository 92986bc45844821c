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
-- REPLY[1] program   text  bounds of the program, as set_bounds stores them; empty: none
-- REPLY[2] operator  text  bounds of an operator; empty: none
-- REPLY[3] waiting   int   number of waiting tasks
-- REPLY[4] recorded  int   size of all messages; -1: the queue does not record it
-- REPLY[5] counted   int   size of all messages, counted now; -1: not requested
check_schema()
local known = redis.call('HMGET', KEYS.meta, 'bounds', '!bounds', 'bytes')
return reply({
  program = known[1], operator = known[2], waiting = count_waiting(),
  recorded = parse_int(known[3], -1), counted = ARGV.counted == '1' and count_bytes() or -1,
})
