#!lua flags=allow-oom
-- announce_schedules: tell all servers to look at the stored schedules of a queue.
-- KEYS[1] schedule_queues  hash  queue -> number, which changes when servers are to look
-- ARGV[1] queue   text
-- ARGV[2] number  int   another one than before
-- returns 1 for a new queue, else 0
return redis.call('HSET', KEYS.schedule_queues, ARGV.queue, ARGV.number)
