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
local sets = {
  { 'pending', KEYS[2] }, { 'scheduled', KEYS[3] }, { 'active', KEYS[4] }, { 'retry', KEYS[5] },
  { 'completed', KEYS[6] }, { 'dead', KEYS[7] },
}
local replies = {}
for i, id in ipairs(ARGV) do
  local state, score
  for _, set in ipairs(sets) do
    score = redis.call('ZSCORE', set[2], id)
    if score then
      state = set[1]
      break
    end
  end
  if state then
    replies[i] = {
      state, whole(tonumber(score)), redis.call('HGET', KEYS[1], id), redis.call('HGET', KEYS[8], id),
      redis.call('HGET', KEYS[9], id), redis.call('HGET', KEYS[10], id),
      redis.call('HGET', KEYS[11], id), redis.call('HGET', KEYS[12], id),
      redis.call('HGET', KEYS[13], id),
    }
  else
    replies[i] = {}
  end
end
return replies
