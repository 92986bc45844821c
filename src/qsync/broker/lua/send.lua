#!lua flags=allow-oom
-- send: an order to a server; it is forgotten when nobody reads it.
-- KEYS[1] inbox  list   with a time to live
-- ARGV[1] ttl    int ms
-- ARGV[2] order  bytes
-- returns the length of the inbox
local length = redis.call('RPUSH', KEYS[1], ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return length
