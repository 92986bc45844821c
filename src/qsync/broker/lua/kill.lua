#!lua flags=allow-oom
-- kill: make tasks dead, and store their failure records.
-- variants: plain flow
-- include: check_schema preconditions clock
-- flow include: wake_server message_limits limit_states waiter_entries limit_waiters
-- flow include: message_bytes
-- include: counters unique_locks ended_tasks forget_tasks
-- include: check_leases
-- flow include: schedule_due note_runnable successors start_successors
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
-- flow KEYS[12] tasks  hash    id -> message
-- flow KEYS[13] scheduled  zset    ids by due time
-- flow KEYS[14] wake  list
-- flow KEYS[15] idle  zset    ids of servers that a message wakes
-- flow KEYS[16] successors  hash    id -> due us, member and message of its next run
-- flow KEYS[17] crashes  hash    id -> crash count
-- flow KEYS[18] pending   zset    ids by order tag
-- flow KEYS[19] limited   zset    ids by order tag
-- flow KEYS[20] waiters   zset    limit and id of each limited task
-- flow KEYS[21] holds     hash    id -> its limits, of unfinished tasks
-- flow KEYS[22] limits    hash    limit -> its state
-- flow KEYS[23] limit_rules hash    name -> its rule
-- flow KEYS[24] openings  zset    limits by the time at which they open, us
-- ARGV[1] now        int us  empty: the store's clock
-- ARGV[2...] four values per task: id, token, 1 when an attempt failed (else 0), failure record
-- returns one outcome per task: ok | done | lost
check_schema()
local now = clock(ARGV.now)
local held, dying, replies, lost = check_leases(ARGV, 2, 4)
local dead, failures, failed = {}, {}, 0
-- flow:
local successors
successors, held, dying = split_successors(held, dying)
for _, i in ipairs(successors.positions) do
  failed = failed + tonumber(ARGV[4 * i])
end
-- end flow
for at, i in ipairs(held) do
  dead[2 * at - 1], dead[2 * at] = to_text(now), dying[at]
  failures[2 * at - 1], failures[2 * at] = dying[at], ARGV[4 * i + 1]
  failed = failed + tonumber(ARGV[4 * i])
end
-- flow:
begin_limits(now, #successors.ids > 0)
-- end flow
if #dying > 0 then
  check_set(KEYS.dead)
  check_hash(KEYS.failures)
  check_rights(KEYS.dead, { 'HDEL', 'ZADD', 'HSET' })
  release_leases(dying)
  redis.call('ZADD', KEYS.dead, unpack(dead))
  redis.call('HSET', KEYS.failures, unpack(failures))
  -- flow:
  drop_holds(dying)
  -- end flow
  unlock(now, dying)
  delete_fields(KEYS.keys, dying)
  delete_fields(KEYS.cancels, dying)
  note_ended(dying)
  redis.call('HSET', KEYS.meta, 'swept', '0')  -- the next fetch trims them if there are too many
end
-- flow:
release_leases(successors.ids)
start_successors(successors)
if settle_limits() then
  wake_server()
end
-- end flow
count(now, 'dead', #dying)
count(now, 'failed', failed)
count(now, 'lost', lost)
publish_ended()
return replies
