#!lua flags=no-writes
-- check_for_work: read whether a server has anything to do in a queue. A check costs a fifth of
-- what a fetch costs. If upkeep is due, the first server that checks performs it, and the other
-- servers then find that none is due.
-- variants: plain flow
-- include: check_schema clock find_work
-- KEYS[1] meta       hash    schema, paused, generation; when a server was last seen
-- KEYS[2] pending    zset    ids by order tag
-- KEYS[3] scheduled  zset    ids by due time
-- KEYS[4] retry      zset    ids by due time
-- KEYS[5] active     zset    ids by lease expiry
-- KEYS[6] completed  zset    ids by end of retention
-- flow KEYS[7] openings  zset    limits by the time at which they open, us
-- ARGV[1] now        int us  empty: the store's clock
-- ARGV[2] lease      int us
-- returns generation, empty before the first fetch; 1 when tasks can be fetched; 1 when upkeep is
--   due
local generation, waits, due = find_work(ARGV.now, tonumber(ARGV.lease))
return { generation, waits, due }
