#!lua flags=allow-oom
-- start: mark tasks that crashed before as running, so that a crash from now on counts for them.
-- A last argument `-` after the tasks says that suspects run together: then it does not count, since
-- any of them may be the cause, but is noted.
-- include: schema clock crash owned
-- KEYS[1] owner    hash    id -> lease token
-- KEYS[2] crashes  hash    id -> crash count
-- KEYS[3] meta     hash    schema
-- ARGV[1...] two a task: id, token
-- returns one a task: ok | done | lost
check_schema(KEYS[3])
local sign = #ARGV % 2 == 1 and ARGV[#ARGV] or '+'
local last = #ARGV - #ARGV % 2
local _, held_ids, replies = owned(KEYS[1], { unpack(ARGV, 1, last) }, 1, 2)
if #held_ids > 0 and redis.call('EXISTS', KEYS[2]) == 1 then
  for i, crashes in ipairs(redis.call('HMGET', KEYS[2], unpack(held_ids))) do
    if crashes then
      redis.call('HSET', KEYS[2], held_ids[i], signed(crashes, sign))
    end
  end
end
return replies
