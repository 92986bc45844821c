#!lua flags=allow-oom
-- send_order: put an order into a server's inbox, which expires after `ttl`. An order is not added
-- if it equals the last unread order. If over 1000 orders are unread, the oldest are dropped, since
-- a hung server reads none.
-- include: preconditions
-- KEYS[1] inbox  list   expires
-- ARGV[1] ttl    int ms
-- ARGV[2] order  bytes
-- returns the length of the inbox
check_rights(KEYS.inbox, { 'PEXPIRE', 'LLEN' })
if redis.call('LINDEX', KEYS.inbox, -1) ~= ARGV.order then
  redis.call('RPUSH', KEYS.inbox, ARGV.order)
  if redis.call('LLEN', KEYS.inbox) > 1000 then
    redis.pcall('LPOP', KEYS.inbox)
  end
end
redis.call('PEXPIRE', KEYS.inbox, ARGV.ttl)
return redis.call('LLEN', KEYS.inbox)
