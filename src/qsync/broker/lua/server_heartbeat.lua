#!lua flags=allow-oom
-- server_heartbeat: record a server as live, and remove expired servers.
-- The write is replicated but not written to the append-only file, which would otherwise grow
-- forever while servers are idle. After a restart of the store, servers announce themselves again.
-- include: preconditions clock
-- KEYS[1] servers  zset    server ids by expiry time, us
-- ARGV[1] now      int us  empty: the store's clock
-- ARGV[2] server   text
-- ARGV[3] ttl      int us  0: remove the server
-- returns the number of live servers
local now, ttl = clock(ARGV.now), tonumber(ARGV.ttl)
check_rights(KEYS.servers, { 'ZADD', 'ZREM', 'ZCARD' })
redis.set_repl(redis.REPL_REPLICA)
redis.call('ZREMRANGEBYSCORE', KEYS.servers, '-inf', to_text(now))
if ttl > 0 then
  redis.call('ZADD', KEYS.servers, to_text(now + ttl), ARGV.server)
else
  redis.call('ZREM', KEYS.servers, ARGV.server)
end
return redis.call('ZCARD', KEYS.servers)
