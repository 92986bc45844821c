#!lua flags=allow-oom
-- announce: a server lives; those that did not say so for long are dropped.
-- It goes to replicas and not to the append-only file, which idle servers would let grow for ever: after
-- a restart of the store they say it again.
-- include: guard clock
-- KEYS[1] servers  zset    server id by the time until which it counts as live
-- ARGV[1] now      int us  empty: the store's clock
-- ARGV[2] server   text
-- ARGV[3] ttl      int us  0: it leaves
-- returns the number of live servers
local now, ttl = clock(ARGV[1]), tonumber(ARGV[3])
check_rights(KEYS[1], { 'ZADD', 'ZREM', 'ZCARD' })
redis.set_repl(redis.REPL_REPLICA)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', whole(now))
if ttl > 0 then
  redis.call('ZADD', KEYS[1], whole(now + ttl), ARGV[2])
else
  redis.call('ZREM', KEYS[1], ARGV[2])
end
return redis.call('ZCARD', KEYS[1])
