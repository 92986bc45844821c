#!lua flags=allow-oom
-- mark: write something in any case, so that a durability wait on the connection waits for it.
-- include: schema
-- KEYS[1] meta       hash    marked
-- returns 1
check_schema(KEYS[1])
redis.call('HSET', KEYS[1], 'marked', '1')
return 1
