#!lua flags=allow-oom
-- describe: store a server's description of itself, for views. It is replicated but not written to
-- the append-only file.
-- include: guard
-- KEYS[1] server  hash   expires
-- ARGV[1] ttl     int ms 0: delete it
-- ARGV[2...] field, value; always the same fields
-- returns 1
redis.set_repl(redis.REPL_REPLICA)
if tonumber(ARGV[1]) > 0 then
  check_rights(KEYS[1], { 'PEXPIRE' })
  redis.call('HSET', KEYS[1], unpack(ARGV, 2))
  redis.call('PEXPIRE', KEYS[1], ARGV[1])
else
  redis.call('UNLINK', KEYS[1])
end
return 1
