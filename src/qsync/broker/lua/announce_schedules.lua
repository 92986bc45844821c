#!lua flags=allow-oom
-- announce_schedules: tell all servers to check the stored schedules of a queue.
-- KEYS[1] schedule_queues  hash  queue -> number, changed when servers must check
-- ARGV[1] queue   text
-- ARGV[2] number  int   must differ from the last number
-- returns 1 for a new queue, else 0
return redis.call('HSET', KEYS.schedule_queues, ARGV.queue, ARGV.number)
