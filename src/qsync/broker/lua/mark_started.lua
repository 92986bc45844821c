#!lua flags=allow-oom
-- mark_started: mark tasks with earlier crashes as running, so that another server crash counts
-- against them. An argument `-` after the tasks means that several suspects run together. A crash
-- is then recorded but does not count, since any of these suspects may be the cause.
-- include: check_schema clock crash_counts check_leases
-- KEYS[1] owner    hash    id -> lease token
-- KEYS[2] crashes  hash    id -> crash count
-- KEYS[3] meta     hash    schema
-- ARGV[1...] two values per task: id, token
-- returns one outcome per task: ok | done | lost
check_schema()
local sign = #ARGV % 2 == 1 and ARGV[#ARGV] or '+'
local last = #ARGV - #ARGV % 2
local _, held_ids, replies = check_leases({ unpack(ARGV, 1, last) }, 1, 2)
if #held_ids > 0 and redis.call('EXISTS', KEYS.crashes) == 1 then
  for i, crashes in ipairs(redis.call('HMGET', KEYS.crashes, unpack(held_ids))) do
    if crashes then
      redis.call('HSET', KEYS.crashes, held_ids[i], signed(crashes, sign))
    end
  end
end
return replies
