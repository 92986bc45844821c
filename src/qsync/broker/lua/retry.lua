#!lua flags=allow-oom
-- retry: failed attempts wait for the next one. A task whose cancel was asked for ends instead.
-- include: clock wake count lock erase owned
-- KEYS[1] tasks      hash    id -> message
-- KEYS[2] active     zset    ids by lease expiry
-- KEYS[3] retry      zset    ids by due time
-- KEYS[4] completed  zset    ids by the time until which they are kept
-- KEYS[5] owner      hash    id -> lease token
-- KEYS[6] crashes    hash    id -> crash count
-- KEYS[7] failures   hash    id -> failure record
-- KEYS[8] results    hash    id -> result record
-- KEYS[9] unique     hash    locks
-- KEYS[10] keys      hash    id -> fairness key
-- KEYS[11] cancels   hash    id -> retention us
-- KEYS[12] progress  hash    id -> done/total
-- KEYS[13] wake      list
-- KEYS[14] stats     hash    counters
-- KEYS[15] done      channel of ended tasks
-- ARGV[1] now        int us  empty: the store's clock
-- ARGV[2...] four a task: id, token, delay us, failure record
-- returns one a task: ok | done | lost
local k = {
  tasks = KEYS[1], active = KEYS[2], completed = KEYS[4], owner = KEYS[5], crashes = KEYS[6],
  failures = KEYS[7], results = KEYS[8], unique = KEYS[9], keys = KEYS[10], cancels = KEYS[11],
  progress = KEYS[12], stats = KEYS[14], done = KEYS[15],
}
local now = clock(ARGV[1])
local ids, held, replies = owned(k.owner, ARGV, 2, 4)
local cancelled, again = {}, {}
for _, i in ipairs(held) do
  redis.call('HSET', k.failures, ids[i], ARGV[4 * i + 1])
  if redis.call('HEXISTS', k.cancels, ids[i]) == 1 then
    cancelled[#cancelled + 1] = ids[i]
  else
    again[#again + 1] = whole(now + tonumber(ARGV[4 * i]))
    again[#again + 1] = ids[i]
    -- The server lived to tell: whatever crashed before, this attempt did not.
    local crashes = redis.call('HGET', k.crashes, ids[i])
    if crashes then
      redis.call('HSET', k.crashes, ids[i], string.match(crashes, '^%d+'))
    end
  end
end
local lost = 0
for i = 1, #replies do
  if replies[i] == 'lost' then
    lost = lost + 1
  end
end
local held_ids = {}
for at, i in ipairs(held) do
  held_ids[at] = ids[i]
end
release(k, held_ids)
end_cancelled(k, now, cancelled)
if #again > 0 then
  local first_due = redis.call('ZRANGE', KEYS[3], 0, 0, 'WITHSCORES')[2]
  redis.call('ZADD', KEYS[3], unpack(again))
  local new_due = redis.call('ZRANGE', KEYS[3], 0, 0, 'WITHSCORES')[2]
  if not first_due or tonumber(new_due) < tonumber(first_due) then
    wake(KEYS[13])
  end
end
count(k.stats, now, 'failed', #held)
count(k.stats, now, 'retried', #again / 2)
count(k.stats, now, 'lost', lost)
return replies
