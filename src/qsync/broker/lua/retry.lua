#!lua flags=allow-oom
-- retry: put tasks whose attempt failed into retry. A task with a cancel request ends instead.
-- include: schema guard clock wake count crash lock due ended erase owned
-- KEYS[1] tasks      hash    id -> message
-- KEYS[2] active     zset    ids by lease expiry
-- KEYS[3] retry      zset    ids by due time
-- KEYS[4] completed  zset    ids by end of retention
-- KEYS[5] owner      hash    id -> lease token
-- KEYS[6] crashes    hash    id -> crash count
-- KEYS[7] failures   hash    id -> failure record
-- KEYS[8] results    hash    id -> result record
-- KEYS[9] unique     hash    locks
-- KEYS[10] keys      hash    id -> fairness key
-- KEYS[11] cancels   hash    id -> retention us
-- KEYS[12] progress  hash    id -> done/total, or @<us> at which it became runnable
-- KEYS[13] wake      list
-- KEYS[14] stats     hash    counters
-- KEYS[15] done      channel of ended tasks
-- KEYS[16] meta      hash    schema
-- KEYS[17] recent  zset    ids that callers chose, by expiry time
-- KEYS[18] idle      zset    ids of servers that a message wakes
-- ARGV[1] now        int us  empty: the store's clock
-- ARGV[2...] four values per task: id, token, delay us, failure record
-- returns one per task: ok | done | lost
local k = {
  tasks = KEYS[1], active = KEYS[2], completed = KEYS[4], owner = KEYS[5], crashes = KEYS[6],
  failures = KEYS[7], results = KEYS[8], unique = KEYS[9], keys = KEYS[10], cancels = KEYS[11],
  progress = KEYS[12], stats = KEYS[14], done = KEYS[15],
  recent = KEYS[17],
}
check_schema(KEYS[16])
local now = clock(ARGV[1])
local held, held_ids, replies, lost = owned(k.owner, ARGV, 2, 4)
local failures, cancelled, again = {}, {}, {}
local any_cancels = redis.call('EXISTS', k.cancels) == 1
for at, i in ipairs(held) do
  local id = held_ids[at]
  failures[2 * at - 1], failures[2 * at] = id, ARGV[4 * i + 1]
  if any_cancels and redis.call('HEXISTS', k.cancels, id) == 1 then
    cancelled[#cancelled + 1] = id
  else
    again[#again + 1] = whole(now + tonumber(ARGV[4 * i]))
    again[#again + 1] = id
  end
end
if #held > 0 then
  check_hash(k.failures)
  check_hash(k.crashes)
  check_set(KEYS[3])
  check_cancelled(k)
  check_rights(k.tasks, { 'HDEL', 'HSET', 'HGET', 'ZADD', 'ZRANGE' })
  release(k, held_ids)
  unmark(k.crashes, held_ids)
  redis.call('HSET', k.failures, unpack(failures))
  end_cancelled(k, now, cancelled)
  put_due(KEYS[3], KEYS[13], KEYS[18], again)
end
count(k.stats, now, 'failed', #held)
count(k.stats, now, 'retried', #again / 2)
count(k.stats, now, 'lost', lost)
publish_ended(k.done)
return replies
