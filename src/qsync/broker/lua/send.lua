#!lua flags=allow-oom
-- send: an order to a server; it is forgotten when nobody reads it. One that was just sent, and not
-- read since, is not sent again.
-- include: guard
-- KEYS[1] inbox  list   with a time to live
-- ARGV[1] ttl    int ms
-- ARGV[2] order  bytes
-- returns the length of the inbox
check_rights(KEYS[1], { 'PEXPIRE', 'LLEN' })
if redis.call('LINDEX', KEYS[1], -1) ~= ARGV[2] then
  redis.call('RPUSH', KEYS[1], ARGV[2])
end
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return redis.call('LLEN', KEYS[1])
