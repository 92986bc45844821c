#!lua flags=allow-oom
-- announce: record a server as live, and remove expired servers.
-- It is replicated but not written to the append-only file, which idle servers would make grow
-- forever. Servers announce themselves again after a restart of the store.
-- include: guard clock
-- KEYS[1] servers  zset    server ids by expiry time, us
-- ARGV[1] now      int us  empty: the store's clock
-- ARGV[2] server   text
-- ARGV[3] ttl      int us  0: remove the server
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
