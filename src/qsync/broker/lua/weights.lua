#!lua flags=no-writes
-- weights: read some of the shares of fairness keys.
-- include: check_schema
-- KEYS[1] meta       hash    weight:<fairness key>
-- ARGV[1] cursor     text    of HSCAN
-- ARGV[2] count      int
-- returns the next cursor, "0" at the end; and alternating fields and values
check_schema()
return redis.call('HSCAN', KEYS.meta, ARGV.cursor, 'MATCH', 'weight:*', 'COUNT', ARGV.count)
