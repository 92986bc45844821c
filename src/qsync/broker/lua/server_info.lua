#!lua flags=no-writes
-- server_info: read a server's description of itself.
-- KEYS[1] server  hash   expires
-- returns alternating fields and values; nothing when there is no description
return redis.call('HGETALL', KEYS.server)
