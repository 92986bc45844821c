#!lua flags=allow-oom
-- start: mark tasks that crashed before as running, so that a crash from now on counts for them.
-- include: schema clock crash owned
-- KEYS[1] owner    hash    id -> lease token
-- KEYS[2] crashes  hash    id -> crash count
-- KEYS[3] meta     hash    schema
-- ARGV[1...] two a task: id, token
-- returns one a task: ok | done | lost
check_schema(KEYS[3])
local _, held_ids, replies = owned(KEYS[1], ARGV, 1, 2)
if #held_ids > 0 and redis.call('EXISTS', KEYS[2]) == 1 then
  for i, crashes in ipairs(redis.call('HMGET', KEYS[2], unpack(held_ids))) do
    if crashes then
      redis.call('HSET', KEYS[2], held_ids[i], whole(crash_count(crashes)) .. '+')
    end
  end
end
return replies
