#!lua flags=allow-oom
-- fetch: do the queue's upkeep and lease pending tasks to a server. All servers share the upkeep.
-- Steps: 1 promote due tasks; 2 recover tasks with expired leases (delayed after an outage);
-- 3 lease; 4 sweep; 5 wake the next idle server.
-- A fetch with the number of the last one returns the same tasks, without those that its token no
-- longer owns.
-- A queue without tasks, or with dead ones only, gets upkeep only every few minutes.
-- A fetch without tasks or upkeep writes nothing, so an idle queue costs no disk and no replication.
-- It is not recorded either, and its repetition is an ordinary fetch. A fetch with `again` is
-- recorded, so that a late copy of it finds its number.
-- The first fetch of a queue sets the generation; a new generation later means that data were lost.
-- include: schema guard begin clock wake count crash tags lock ended erase life since runnable recover sweep
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
-- KEYS[12] unique    hash    locks
-- KEYS[13] keys      hash    id -> fairness key
-- KEYS[14] fairness  zset    fairness keys by last tag
-- KEYS[15] fetches   hash    server id -> number, time us and ids, separated by spaces
-- KEYS[16] cancels   hash    id -> retention us
-- KEYS[17] progress  hash    id -> done/total, or @<us> at which it became runnable
-- KEYS[18] wake      list
-- KEYS[19] meta      hash    paused, generation, virtual time; when a server was last seen; sweeps
-- KEYS[20] stats     hash    counters
-- KEYS[21] calls     hash    sender -> its last enqueue
-- KEYS[22] done      channel of ended tasks
-- KEYS[23] recent  zset    ids that callers chose, by expiry time
-- KEYS[24] idle      zset    ids of servers that a message wakes
-- ARGV[1] now          int us  empty: the store's clock
-- ARGV[2] server       text    id of the server
-- ARGV[3] number       int     number of this fetch; rises per server and queue
-- ARGV[4] wanted       int     maximum number of tasks, 0 to 500
-- ARGV[5] lease        int us
-- ARGV[6] max_crashes  int     number of crashes after which a task is dead
-- ARGV[7] dead_limit   int     maximum number of dead tasks to keep
-- ARGV[8] dead_age     int us  maximum age of dead tasks
-- ARGV[9] max_bytes    int     maximum size of the messages; one task is taken whatever its size
-- ARGV[10] again       int     1: this number was sent before and got no reply
-- returns now us; us until the next task or upkeep is due (-1: none known); 1 when upkeep has more
--   to do; number of tasks recovered; number of tasks dead of crashes; ids; messages; failure
--   records; crash counts; for each task @<us> if the store has the time at which it became
--   runnable; the caller's own ids whose lease expired; 1 when the queue is paused; generation;
--   1 when more tasks can be fetched
local k = {
  tasks = KEYS[1], pending = KEYS[2], scheduled = KEYS[3], active = KEYS[4], retry = KEYS[5],
  completed = KEYS[6], dead = KEYS[7], owner = KEYS[8], crashes = KEYS[9], failures = KEYS[10],
  results = KEYS[11], unique = KEYS[12], keys = KEYS[13], fairness = KEYS[14], fetches = KEYS[15],
  cancels = KEYS[16], progress = KEYS[17], wake = KEYS[18], meta = KEYS[19], stats = KEYS[20],
  calls = KEYS[21], done = KEYS[22],
  recent = KEYS[23], idle = KEYS[24],
}
local known = redis.call(
  'HMGET', k.meta, 'schema', 'paused', 'generation', 'v', 'seen', 'returned', 'swept'
)
begin_schema(k.meta, known[1])
local now, server, number = clock(ARGV[1]), ARGV[2], tonumber(ARGV[3])
local wanted, max_bytes = tonumber(ARGV[4]), tonumber(ARGV[9])
local token, again = server .. '/' .. ARGV[3], ARGV[10] == '1'
local paused, generation, virtual = known[2] and 1 or 0, known[3], read_tag(known[4])
local limit, more = 100, 0

-- Return the lowest score of a set.
local function first_of(set_key)
  return tonumber(redis.call('ZRANGE', set_key, 0, 0, 'WITHSCORES')[2] or '') or math.huge
end

-- Return the hash's values for the ids; empty if the hash does not exist.
local function beside(hash_key, ids)
  if #ids == 0 or redis.call('EXISTS', hash_key) == 0 then
    return {}
  end
  return redis.call('HMGET', hash_key, unpack(ids))
end

if not generation then
  generation = server .. '@' .. whole(now)
  redis.call('HSET', k.meta, 'generation', generation)
end
-- Trimming dead tasks and forgetting the last calls of old senders can wait for some minutes.
local swept_us = math.abs(now - digits(known[7], 0))
local recent = swept_us < math.min(300000000, tonumber(ARGV[8]) / 10)
if redis.call(
  'EXISTS', k.pending, k.scheduled, k.retry, k.active, k.completed, k.unique, k.fairness
) == 0 and (recent or redis.call('EXISTS', k.dead, k.calls, k.recent) == 0) then
  if again then
    redis.call('HSET', k.fetches, server, ARGV[3] .. ' ' .. whole(now))
  end
  return { whole(now), '-1', 0, 0, 0, {}, {}, {}, {}, {}, {}, paused, generation, 0 }
end
local last = redis.call('HMGET', k.fetches, server)[1]
local before, batch = string.match(last or '', '^(%d+) %d+(.*)$')
before = digits(before, -1)
if number < before then
  return { whole(now), '-1', 0, 0, 0, {}, {}, {}, {}, {}, {}, paused, generation, 0 }
end
if number == before then
  local leased, ids, messages = {}, {}, {}
  for id in string.gmatch(batch, '%S+') do
    leased[#leased + 1] = id
  end
  local owners, bodies = beside(k.owner, leased), beside(k.tasks, leased)
  for i, id in ipairs(leased) do
    if owners[i] == token and bodies[i] then
      ids[#ids + 1] = id
      messages[#messages + 1] = bodies[i]
    end
  end
  return {
    whole(now), '0', 0, 0, 0, ids, messages, beside(k.failures, ids), beside(k.crashes, ids),
    read_since(k.progress, ids), {}, paused, generation, 1 - paused,
  }
end

-- Most queues have none of these keys most of the time: one EXISTS saves reading each of them.
local unusual = redis.call(
  'EXISTS', k.scheduled, k.retry, k.completed, k.dead, k.failures, k.crashes, k.progress
) > 0
if unusual then
  for _, set_key in ipairs({ k.scheduled, k.retry, k.completed, k.dead }) do
    check_set(set_key)
  end
  check_hash(k.failures)
  check_hash(k.crashes)
end

-- Fail before a task changes its state if one of the writes for it would fail.
local function check_transitions()
  check_set(k.pending)
  check_hash(k.owner)
  check_rights(k.tasks, { 'ZREM', 'ZADD', 'HSET', 'HGET', 'HDEL', 'ZCARD' })
end

-- 1 promote
local next_due = math.huge
for _, set_key in ipairs(unusual and { k.scheduled, k.retry } or {}) do
  local first = first_of(set_key)
  if first <= now then
    local due = until_moment(set_key, now, limit)
    check_transitions()
    check_set(k.fairness)
    check_hash(k.keys)
    redis.call('ZREM', set_key, unpack(due))
    to_pending(k.pending, k.meta, k.fairness, k.keys, due)
    if #due == limit then
      more = 1
    end
    first = first_of(set_key)
  end
  next_due = math.min(next_due, first)
end

-- 2 recover
local lease, first_lease, spared = tonumber(ARGV[5]), first_of(k.active), 0
if first_lease < math.huge or redis.call('EXISTS', k.pending) == 1 then
  spared = note_life(k.meta, now, lease, known[5], known[6])
end
local until_when, lapsed = spared > 0 and 0 or now, {}
if first_lease <= until_when then
  lapsed = until_moment(k.active, until_when, limit)
end
if #lapsed > 0 then
  check_transitions()
end
local own, recovered, died = recover(k, now, server, tonumber(ARGV[6]), lapsed)
if #lapsed == limit and #own < limit then
  more = 1
end
unusual = unusual or #lapsed > 0

-- 3 lease
local ids, messages, lost = {}, {}, {}
local taken, bytes, at, full = 0, 0, 0, wanted == 0 or paused == 1
local waiting -- how many tasks there were, once all have been seen
while taken < wanted and not full do
  if #lost >= limit then
    more = 1
    break
  end
  local size = math.min(50, wanted - taken)
  local chunk = redis.call('ZRANGE', k.pending, at, at + size - 1)
  at = at + #chunk
  if #chunk < size then
    full, waiting = true, at
    if #chunk == 0 then
      break
    end
  end
  local bodies = redis.call('HMGET', k.tasks, unpack(chunk))
  for i, id in ipairs(chunk) do
    local body = bodies[i]
    if not body then
      lost[#lost + 1] = id
    elseif taken > 0 and bytes + #body > max_bytes then
      full = true
      break
    else
      taken, bytes = taken + 1, bytes + #body
      ids[taken], messages[taken] = id, body
    end
  end
end
if #lost > 0 then
  check_transitions()
elseif #ids > 0 then
  check_rights(k.tasks, { 'ZREM', 'ZADD', 'HDEL', 'ZCARD' })
end
if #ids > 0 then
  local tag = redis.call('ZSCORE', k.pending, ids[#ids])
  local leases, owners, expiry = {}, {}, now + lease
  for i, id in ipairs(ids) do
    leases[2 * i - 1], leases[2 * i] = expiry + i - 1, id
    owners[2 * i - 1], owners[2 * i] = id, token
  end
  -- Owners are written first: an owner of a pending task has no effect. The other keys were read
  -- before, so the writes that follow cannot fail.
  if #ids > 16 then
    -- The store keeps a hash of up to 512 short values as a list, which every lookup scans. A long
    -- value that is written first turns it into a hash table until the key is deleted.
    redis.call('HSET', k.owner, ' ', string.rep('x', 65), unpack(owners))
    redis.call('HDEL', k.owner, ' ')
  else
    redis.call('HSET', k.owner, unpack(owners))
  end
  redis.call('ZREM', k.pending, unpack(ids))
  redis.call('ZADD', k.active, unpack(leases))
  if read_tag(tag) > virtual then
    virtual = read_tag(tag)
    redis.call('HSET', k.meta, 'v', tag)
  end
  first_lease = math.min(first_lease, expiry)
end
if #lost > 0 then
  check_set(k.dead)
  redis.call('ZREM', k.pending, unpack(lost))
  to_dead(k, now, lost)
  unusual = true
end
if #ids > 0 or again then
  local record = { ARGV[3], whole(now), unpack(ids) }
  redis.call('HSET', k.fetches, server, table.concat(record, ' '))
end

-- 4 sweep: a little more than was leased, so that it keeps up at any rate
local most, trimming = limit + #ids, false
if unusual then
  if sweep_completed(k, now, most) == most then
    more = 1
  end
  trimming = trim_dead(k, now, most, tonumber(ARGV[7]), tonumber(ARGV[8])) == most
end
if sweep_hashes(k, now, limit, known[7], trimming, #ids > 0) then
  more = 1
end

-- 5 wake
local left = waiting and waiting - #ids - #lost or redis.call('ZCARD', k.pending)
if left == 0 then
  redis.pcall('UNLINK', k.fairness, k.wake) -- nobody need be woken for what this one has seen
else
  local passed = redis.pcall('ZRANGEBYSCORE', k.fairness, '-inf', virtual, 'LIMIT', 0, limit)
  if #passed > 0 then
    redis.pcall('ZREM', k.fairness, unpack(passed))
  end
  if paused == 0 then
    wake(k.wake, k.idle)
  end
end
publish_ended(k.done)

if #lapsed > 0 then
  first_lease = first_of(k.active)
end
if first_lease >= 0 then
  first_lease = math.max(first_lease, spared)
end
next_due = math.min(next_due, first_lease)
local of_failures, of_crashes, since = {}, {}, {}
if #ids > 0 and unusual then
  of_failures, of_crashes = beside(k.failures, ids), beside(k.crashes, ids)
  since = read_since(k.progress, ids)
end
return {
  whole(now), next_due < math.huge and whole(math.max(0, next_due - now)) or '-1', more,
  #recovered, #died, ids, messages, of_failures, of_crashes, since, own, paused, generation,
  left > 0 and 1 - paused or 0,
}
