#!lua flags=allow-oom
-- start: mark tasks that crashed before as running, so that a crash from now on counts for them.
-- include: owned
-- KEYS[1] owner    hash    id -> lease token
-- KEYS[2] crashes  hash    id -> crash count
-- ARGV[1...] two a task: id, token
-- returns one a task: ok | done | lost
local ids, held, replies = owned(KEYS[1], ARGV, 1, 2)
for _, i in ipairs(held) do
  local crashes = redis.call('HGET', KEYS[2], ids[i])
  if crashes then
    redis.call('HSET', KEYS[2], ids[i], string.match(crashes, '^%d+') .. '+')
  end
end
return replies
