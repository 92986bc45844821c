#!lua flags=no-writes
-- servers: read the live servers.
-- include: clock
-- KEYS[1] servers  zset    server ids by expiry time, us
-- ARGV[1] now      int us  empty: the store's clock
-- ARGV[2] count    int     maximum number of servers
-- returns now us; and alternating ids and expiry times, us
local now = to_text(clock(ARGV.now))
local live = redis.call(
  'ZRANGEBYSCORE', KEYS.servers, '(' .. to_text(clock(ARGV.now)), '+inf', 'WITHSCORES', 'LIMIT', 0,
  ARGV.count
)
return { now, live }
