#!lua flags=no-writes
-- get_tasks: read tasks with all their data.
-- include: check_schema clock
-- KEYS[1] tasks      hash    id -> message
-- KEYS[2] pending    zset    ids by order tag
-- KEYS[3] scheduled  zset    ids by due time
-- KEYS[4] active     zset    ids by lease expiry
-- KEYS[5] retry      zset    ids by due time
-- KEYS[6] completed  zset    ids by end of retention
-- KEYS[7] dead       zset    ids by time of death
-- KEYS[8] owner      hash    id -> lease token
-- KEYS[9] crashes    hash    id -> crash count
-- KEYS[10] failures  hash    id -> failure record
-- KEYS[11] results   hash    id -> result record
-- KEYS[12] cancels   hash    id -> retention us
-- KEYS[13] progress  hash    id -> done/total, or @<us> at which it became runnable
-- KEYS[14] meta      hash    schema
-- KEYS[15] limited   zset    ids by order tag
-- KEYS[16] successors hash  id -> due us, member and message of its next run
-- ARGV[1] messages  flag    empty: return an empty text instead of each existing message
--   and next run
-- ARGV[2...] ids
-- returns one row per task: empty when it is not in the queue, else state, score, message, owner,
--   crash count, failure record, result record, retention in cancels, progress, next run (due us,
--   member and message)
check_schema()
local states = { 'pending', 'scheduled', 'active', 'retry', 'completed', 'dead', 'limited' }
local ids, replies = { unpack(ARGV, 2) }, {}
if #ids == 0 then
  return replies
end
for at, set_key in ipairs({
  KEYS.pending, KEYS.scheduled, KEYS.active, KEYS.retry, KEYS.completed, KEYS.dead,
  KEYS.limited,
}) do
  for i, score in ipairs(redis.call('ZMSCORE', set_key, unpack(ids))) do
    if score and not replies[i] then
      replies[i] = { states[at], to_text(math.max(-4e17, math.min(tonumber(score), 4e17))) }
    end
  end
end
for at, hash_key in ipairs({
  KEYS.tasks, KEYS.owner, KEYS.crashes, KEYS.failures, KEYS.results, KEYS.cancels, KEYS.progress,
  KEYS.successors,
}) do
  local fields, has_messages = {}, hash_key == KEYS.tasks or hash_key == KEYS.successors
  if has_messages and ARGV.messages == '' then
    for i, id in ipairs(ids) do
      fields[i] = replies[i] and redis.call('HEXISTS', hash_key, id) == 1 and ''
    end
  elseif redis.call('EXISTS', hash_key) == 1 then
    fields = redis.call('HMGET', hash_key, unpack(ids))
  end
  for i = 1, #ids do
    if replies[i] then
      replies[i][at + 2] = fields[i] or false
    end
  end
end
for i = 1, #ids do
  replies[i] = replies[i] or {}
end
return replies
