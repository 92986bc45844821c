#!lua flags=allow-oom
-- send: put an order into a server's inbox, which expires after `ttl`. An order that equals the last
-- unread one is not added again.
-- include: guard
-- KEYS[1] inbox  list   expires
-- ARGV[1] ttl    int ms
-- ARGV[2] order  bytes
-- returns the length of the inbox
check_rights(KEYS[1], { 'PEXPIRE', 'LLEN' })
if redis.call('LINDEX', KEYS[1], -1) ~= ARGV[2] then
  redis.call('RPUSH', KEYS[1], ARGV[2])
end
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return redis.call('LLEN', KEYS[1])
