#!lua flags=allow-oom
-- set_server_info: store a server's description of itself, for views. The write is replicated but
-- not written to the append-only file.
-- include: preconditions
-- KEYS[1] server  hash   expires
-- ARGV[1] ttl     int ms 0: delete it
-- ARGV[2...] field, value; always the same fields
-- returns 1
redis.set_repl(redis.REPL_REPLICA)
if tonumber(ARGV.ttl) > 0 then
  check_rights(KEYS.server, { 'PEXPIRE' })
  redis.call('HSET', KEYS.server, unpack(ARGV, 2))
  redis.call('PEXPIRE', KEYS.server, ARGV.ttl)
else
  redis.call('UNLINK', KEYS.server)
end
return 1
