#!lua flags=no-writes
-- schedule_queues: read the queues that have stored schedules.
-- KEYS[1] schedule_queues  hash  queue -> number, which changes when servers must check
-- returns a flat list that alternates queues and numbers
local numbers = redis.call('HGETALL', KEYS.schedule_queues)
return numbers
