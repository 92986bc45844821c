#!lua flags=no-writes
-- servers: the servers that live.
-- include: clock
-- KEYS[1] servers  zset    server id by the time until which it counts as live
-- ARGV[1] now      int us  empty: the store's clock
-- ARGV[2] count    int     at most
-- returns now us; and ids and times, us, in turn
local now = whole(clock(ARGV[1]))
local live = redis.call(
  'ZRANGEBYSCORE', KEYS[1], '(' .. whole(clock(ARGV[1])), '+inf', 'WITHSCORES', 'LIMIT', 0, ARGV[2]
)
return { now, live }
