#!lua flags=allow-oom
-- hand_back: hand tasks back that a server leased but will not run, without counting an attempt. They
-- go to the head of pending in the given order, or with a delay to scheduled. A task with a cancel
-- request ends instead.
-- include: schema guard clock wake count crash tags lock due ended erase owned runnable
-- KEYS[1] tasks      hash    id -> message
-- KEYS[2] pending    zset    ids by order tag
-- KEYS[3] scheduled  zset    ids by due time
-- KEYS[4] active     zset    ids by lease expiry
-- KEYS[5] completed  zset    ids by end of retention
-- KEYS[6] owner      hash    id -> lease token
-- KEYS[7] crashes    hash    id -> crash count
-- KEYS[8] failures   hash    id -> failure record
-- KEYS[9] results    hash    id -> result record
-- KEYS[10] unique    hash    locks
-- KEYS[11] keys      hash    id -> fairness key
-- KEYS[12] cancels   hash    id -> retention us
-- KEYS[13] progress  hash    id -> done/total, or @<us> at which it became runnable
-- KEYS[14] wake      list
-- KEYS[15] meta      hash    virtual time
-- KEYS[16] stats     hash    counters
-- KEYS[17] done      channel of ended tasks
-- KEYS[18] recent  zset    ids that callers chose, by expiry time
-- KEYS[19] idle      zset    ids of servers that a message wakes
-- ARGV[1] now        int us  empty: the store's clock
-- ARGV[2...] four values per task: id, token, delay us (empty: to the head), failure record (empty:
--   unchanged)
-- returns one per task: ok | done | lost
local k = {
  tasks = KEYS[1], active = KEYS[4], completed = KEYS[5], owner = KEYS[6], crashes = KEYS[7],
  failures = KEYS[8], results = KEYS[9], unique = KEYS[10], keys = KEYS[11], cancels = KEYS[12],
  progress = KEYS[13], stats = KEYS[16], done = KEYS[17],
  recent = KEYS[18],
}
check_schema(KEYS[15])
local now = clock(ARGV[1])
local held, held_ids, replies = owned(k.owner, ARGV, 2, 4)
local head, later, cancelled, failures = {}, {}, {}, {}
local any_cancels = redis.call('EXISTS', k.cancels) == 1
for at, i in ipairs(held) do
  local id, delay, record = held_ids[at], ARGV[4 * i], ARGV[4 * i + 1]
  if record ~= '' then
    failures[#failures + 1] = id
    failures[#failures + 1] = record
  end
  if any_cancels and redis.call('HEXISTS', k.cancels, id) == 1 then
    cancelled[#cancelled + 1] = id
  elseif delay == '' then
    head[#head + 1] = id
  else
    later[#later + 1] = whole(now + tonumber(delay))
    later[#later + 1] = id
  end
end
if #held > 0 then
  check_hash(k.failures)
  check_hash(k.crashes)
  check_set(KEYS[2])
  check_set(KEYS[3])
  check_cancelled(k)
  check_rights(k.tasks, { 'HDEL', 'HSET', 'HGET', 'ZADD', 'ZRANGE' })
end
release(k, held_ids)
unmark(k.crashes, held_ids)
if #failures > 0 then
  redis.call('HSET', k.failures, unpack(failures))
end
end_cancelled(k, now, cancelled)
put_due(KEYS[3], KEYS[14], KEYS[19], later)
note_since(k.progress, later)
if #head > 0 then
  to_head(KEYS[2], KEYS[15], head)
  note_runnable(k.progress, now, head)
  wake(KEYS[14], KEYS[19])
end
publish_ended(k.done)
return replies
