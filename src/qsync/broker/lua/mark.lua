#!lua flags=allow-oom
-- mark: a write that is always one, from which a connection can wait.
-- include: schema
-- KEYS[1] meta       hash    marked
-- returns 1
check_schema(KEYS[1])
redis.call('HSET', KEYS[1], 'marked', '1')
return 1
