#!lua flags=no-writes
-- queues: the names of the queues in use.
-- KEYS[1] queues  set
-- returns the names
return redis.call('SMEMBERS', KEYS[1])
