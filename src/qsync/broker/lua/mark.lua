#!lua flags=allow-oom
-- mark: a write that is always one, from which a connection can wait.
-- KEYS[1] meta       hash    marked
-- returns 1
redis.call('HSET', KEYS[1], 'marked', '1')
return 1
