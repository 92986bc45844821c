#!lua flags=allow-oom
-- wait_marker: always write something, so that a durability wait on the connection has a write to
-- wait for.
-- include: check_schema
-- KEYS[1] meta       hash    marked
-- returns 1
check_schema()
redis.call('HSET', KEYS.meta, 'marked', '1')
return 1
