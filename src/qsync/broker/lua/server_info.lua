#!lua flags=no-writes
-- server_info: read a server's description of itself.
-- KEYS[1] server  hash   expires
-- returns fields and values in turn; nothing when there is none
return redis.call('HGETALL', KEYS.server)
