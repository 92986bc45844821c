#!lua flags=allow-oom
-- progress: store the progress of running tasks.
-- include: check_schema check_leases
-- KEYS[1] owner     hash    id -> lease token
-- KEYS[2] progress  hash    id -> done/total, or @<us> at which it became runnable
-- KEYS[3] meta      hash    schema
-- ARGV[1...] three values per task: id, token, <done>/<total>
-- returns one outcome per task: ok | done | lost
check_schema()
local held, held_ids, replies = check_leases(ARGV, 1, 3)
for at, i in ipairs(held) do
  redis.call('HSET', KEYS.progress, held_ids[at], ARGV[3 * i])
end
return replies
