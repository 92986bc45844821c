#!lua flags=allow-oom
-- mark: always write something, so that a durability wait on the connection waits for this write.
-- include: schema
-- KEYS[1] meta       hash    marked
-- returns 1
check_schema(KEYS[1])
redis.call('HSET', KEYS[1], 'marked', '1')
return 1
