#!lua flags=no-writes
-- record: what a server said of itself.
-- KEYS[1] server  hash   with a time to live
-- returns fields and values in turn; nothing when it is gone
return redis.call('HGETALL', KEYS[1])
