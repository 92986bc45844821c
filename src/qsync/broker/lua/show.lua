#!lua flags=no-writes
-- show: tasks as they stand.
-- include: clock
-- KEYS[1] tasks      hash    id -> message
-- KEYS[2] pending    zset    ids by order tag
-- KEYS[3] scheduled  zset    ids by due time
-- KEYS[4] active     zset    ids by lease expiry
-- KEYS[5] retry      zset    ids by due time
-- KEYS[6] completed  zset    ids by the time until which they are kept
-- KEYS[7] dead       zset    ids by time of death
-- KEYS[8] owner      hash    id -> lease token
-- KEYS[9] crashes    hash    id -> crash count
-- KEYS[10] failures  hash    id -> failure record
-- KEYS[11] results   hash    id -> result record
-- KEYS[12] cancels   hash    id -> retention us
-- KEYS[13] progress  hash    id -> done/total
-- ARGV[1...] ids
-- returns one a task: empty when it is not there, else state, score, message, owner, crash count,
--   failure record, result record, retention in cancels, progress
local states = { 'pending', 'scheduled', 'active', 'retry', 'completed', 'dead' }
local sets = { KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7] }
local kept = { KEYS[1], KEYS[8], KEYS[9], KEYS[10], KEYS[11], KEYS[12], KEYS[13] }

local function shown(id)
  for at, set_key in ipairs(sets) do
    local score = tonumber(redis.call('ZSCORE', set_key, id) or '')
    if score then
      local reply = { states[at], whole(math.max(-4e17, math.min(score, 4e17))) }
      for _, hash_key in ipairs(kept) do
        reply[#reply + 1] = redis.call('HGET', hash_key, id)
      end
      return reply
    end
  end
  return {}
end

local replies = {}
for i, id in ipairs(ARGV) do
  replies[i] = shown(id)
end
return replies
