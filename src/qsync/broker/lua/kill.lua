#!lua flags=allow-oom
-- kill: make tasks dead, and store their failure records.
-- include: schema guard clock count lock ended erase owned
-- KEYS[1] active     zset    ids by lease expiry
-- KEYS[2] dead       zset    ids by time of death
-- KEYS[3] owner      hash    id -> lease token
-- KEYS[4] failures   hash    id -> failure record
-- KEYS[5] unique     hash    locks
-- KEYS[6] keys       hash    id -> fairness key
-- KEYS[7] cancels    hash    id -> retention us
-- KEYS[8] progress   hash    id -> done/total, or @<us> at which it became runnable
-- KEYS[9] stats      hash    counters
-- KEYS[10] done      channel of ended tasks
-- KEYS[11] meta      hash    schema
-- ARGV[1] now        int us  empty: the store's clock
-- ARGV[2...] four values per task: id, token, 1 when an attempt failed (else 0), failure record
-- returns one per task: ok | done | lost
local k = { active = KEYS[1], owner = KEYS[3], progress = KEYS[8] }
check_schema(KEYS[11])
local now = clock(ARGV[1])
local held, dying, replies, lost = owned(k.owner, ARGV, 2, 4)
local dead, failures, failed = {}, {}, 0
for at, i in ipairs(held) do
  dead[2 * at - 1], dead[2 * at] = whole(now), dying[at]
  failures[2 * at - 1], failures[2 * at] = dying[at], ARGV[4 * i + 1]
  failed = failed + tonumber(ARGV[4 * i])
end
if #dying > 0 then
  check_set(KEYS[2])
  check_hash(KEYS[4])
  check_rights(KEYS[2], { 'HDEL', 'ZADD', 'HSET' })
  release(k, dying)
  redis.call('ZADD', KEYS[2], unpack(dead))
  redis.call('HSET', KEYS[4], unpack(failures))
  unlock(KEYS[5], now, dying)
  forget_beside(KEYS[6], dying)
  forget_beside(KEYS[7], dying)
  note_ended(dying)
  redis.call('HSET', KEYS[11], 'swept', '0')  -- they may be too many: the next fetch sees to it
end
count(KEYS[9], now, 'dead', #dying)
count(KEYS[9], now, 'failed', failed)
count(KEYS[9], now, 'lost', lost)
publish_ended(KEYS[10])
return replies
