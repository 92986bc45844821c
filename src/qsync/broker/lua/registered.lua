#!lua flags=no-writes
-- registered: read whether a queue is in use.
-- KEYS[1] queues  set
-- ARGV[1] queue   text  its name
-- returns 1 or 0
return redis.call('SISMEMBER', KEYS.queues, ARGV.queue)
