#!lua flags=allow-oom
-- fetch: do the queue's upkeep and lease pending tasks to a server. All servers share the upkeep.
-- Steps: 1 promote due tasks; 2 recover tasks with expired leases (delayed after an outage);
-- 3 lease; 4 sweep; 5 wake the next idle server.
-- A fetch with the number of the last one returns the same tasks, without those that its token no
-- longer owns.
-- A queue without tasks, or with dead ones only, gets upkeep only every few minutes.
-- A fetch without tasks or upkeep writes nothing, so an idle queue costs no disk and no
-- replication. It is not recorded either, and its repetition is an ordinary fetch. A fetch with
-- `again` is recorded, so that a late copy of it finds its number.
-- The first fetch of a queue sets the generation; a new generation later means that data were lost.
-- include: check_schema preconditions ensure_schema clock wake_server counters crash_counts
-- include: fairness_tags unique_locks ended_tasks forget_tasks outage_grace runnable_since
-- include: note_runnable recover_expired sweep_expired
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
local known = redis.call(
  'HMGET', KEYS.meta, 'schema', 'paused', 'generation', 'v', 'seen', 'returned', 'swept'
)
ensure_schema(known[1])
local now, server, number = clock(ARGV.now), ARGV.server, tonumber(ARGV.number)
local wanted, max_bytes = tonumber(ARGV.wanted), tonumber(ARGV.max_bytes)
local token, again = server .. '/' .. ARGV.number, ARGV.again == '1'
local paused, generation, virtual = known[2] and 1 or 0, known[3], read_tag(known[4])
local limit, more = 100, 0

-- Return the lowest score of a set.
local function first_of(set_key)
  return tonumber(redis.call('ZRANGE', set_key, 0, 0, 'WITHSCORES')[2] or '') or math.huge
end

-- Return the hash's values for the ids; empty if the hash does not exist.
local function fields_of(hash_key, ids)
  if #ids == 0 or redis.call('EXISTS', hash_key) == 0 then
    return {}
  end
  return redis.call('HMGET', hash_key, unpack(ids))
end

if not generation then
  generation = server .. '@' .. to_text(now)
  redis.call('HSET', KEYS.meta, 'generation', generation)
end
-- Trimming dead tasks and forgetting the last calls of old senders can wait for some minutes.
local swept_us = math.abs(now - parse_int(known[7], 0))
local recent = swept_us < math.min(300000000, tonumber(ARGV.dead_age) / 10)
if redis.call(
  'EXISTS', KEYS.pending, KEYS.scheduled, KEYS.retry, KEYS.active, KEYS.completed, KEYS.unique,
  KEYS.fairness
) == 0 and (recent or redis.call('EXISTS', KEYS.dead, KEYS.calls, KEYS.recent) == 0) then
  if again then
    redis.call('HSET', KEYS.fetches, server, ARGV.number .. ' ' .. to_text(now))
  end
  return { to_text(now), '-1', 0, 0, 0, {}, {}, {}, {}, {}, {}, paused, generation, 0 }
end
local last = redis.call('HMGET', KEYS.fetches, server)[1]
local before, batch = string.match(last or '', '^(%d+) %d+(.*)$')
before = parse_int(before, -1)
if number < before then
  return { to_text(now), '-1', 0, 0, 0, {}, {}, {}, {}, {}, {}, paused, generation, 0 }
end
if number == before then
  local leased, ids, messages = {}, {}, {}
  for id in string.gmatch(batch, '%S+') do
    leased[#leased + 1] = id
  end
  local owners, bodies = fields_of(KEYS.owner, leased), fields_of(KEYS.tasks, leased)
  for i, id in ipairs(leased) do
    if owners[i] == token and bodies[i] then
      ids[#ids + 1] = id
      messages[#messages + 1] = bodies[i]
    end
  end
  return {
    to_text(now), '0', 0, 0, 0, ids, messages, fields_of(KEYS.failures, ids), fields_of(KEYS.crashes, ids),
    read_since(ids), {}, paused, generation, 1 - paused,
  }
end

-- Most queues have none of these keys most of the time: one EXISTS saves reading each of them.
local unusual = redis.call(
  'EXISTS', KEYS.scheduled, KEYS.retry, KEYS.completed, KEYS.dead, KEYS.failures, KEYS.crashes,
  KEYS.progress
) > 0
if unusual then
  for _, set_key in ipairs({ KEYS.scheduled, KEYS.retry, KEYS.completed, KEYS.dead }) do
    check_set(set_key)
  end
  check_hash(KEYS.failures)
  check_hash(KEYS.crashes)
end

-- Fail before a task changes its state if one of the writes for it would fail.
local function check_transitions()
  check_set(KEYS.pending)
  check_hash(KEYS.owner)
  check_rights(KEYS.tasks, { 'ZREM', 'ZADD', 'HSET', 'HGET', 'HDEL', 'ZCARD' })
end

-- 1 promote
local next_due = math.huge
for _, set_key in ipairs(unusual and { KEYS.scheduled, KEYS.retry } or {}) do
  local first = first_of(set_key)
  if first <= now then
    local due = due_ids(set_key, now, limit)
    check_transitions()
    check_set(KEYS.fairness)
    check_hash(KEYS.keys)
    redis.call('ZREM', set_key, unpack(due))
    to_pending(due)
    if #due == limit then
      more = 1
    end
    first = first_of(set_key)
  end
  next_due = math.min(next_due, first)
end

-- 2 recover
local lease, first_lease, spared = tonumber(ARGV.lease), first_of(KEYS.active), 0
if first_lease < math.huge or redis.call('EXISTS', KEYS.pending) == 1 then
  spared = outage_grace(now, lease, known[5], known[6])
end
local until_when, lapsed = spared > 0 and 0 or now, {}
if first_lease <= until_when then
  lapsed = due_ids(KEYS.active, until_when, limit)
end
if #lapsed > 0 then
  check_transitions()
end
local own, recovered, died = recover_expired(now, server, tonumber(ARGV.max_crashes), lapsed)
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
  local chunk = redis.call('ZRANGE', KEYS.pending, at, at + size - 1)
  at = at + #chunk
  if #chunk < size then
    full, waiting = true, at
    if #chunk == 0 then
      break
    end
  end
  local bodies = redis.call('HMGET', KEYS.tasks, unpack(chunk))
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
  check_rights(KEYS.tasks, { 'ZREM', 'ZADD', 'HDEL', 'ZCARD' })
end
if #ids > 0 then
  local tag = redis.call('ZSCORE', KEYS.pending, ids[#ids])
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
    redis.call('HSET', KEYS.owner, ' ', string.rep('x', 65), unpack(owners))
    redis.call('HDEL', KEYS.owner, ' ')
  else
    redis.call('HSET', KEYS.owner, unpack(owners))
  end
  redis.call('ZREM', KEYS.pending, unpack(ids))
  redis.call('ZADD', KEYS.active, unpack(leases))
  if read_tag(tag) > virtual then
    virtual = read_tag(tag)
    redis.call('HSET', KEYS.meta, 'v', tag)
  end
  first_lease = math.min(first_lease, expiry)
end
if #lost > 0 then
  check_set(KEYS.dead)
  redis.call('ZREM', KEYS.pending, unpack(lost))
  make_dead(now, lost)
  unusual = true
end
if #ids > 0 or again then
  local record = { ARGV.number, to_text(now), unpack(ids) }
  redis.call('HSET', KEYS.fetches, server, table.concat(record, ' '))
end

-- 4 sweep: a little more than was leased, so that it keeps up at any rate
local most, trimming = limit + #ids, false
if unusual then
  if sweep_completed(now, most) == most then
    more = 1
  end
  trimming = trim_dead(now, most, tonumber(ARGV.dead_limit), tonumber(ARGV.dead_age)) == most
end
if sweep_hashes(now, limit, known[7], trimming, #ids > 0) then
  more = 1
end

-- 5 wake
local left = waiting and waiting - #ids - #lost or redis.call('ZCARD', KEYS.pending)
if left == 0 then
  redis.pcall('UNLINK', KEYS.fairness, KEYS.wake) -- nobody need be woken for what this one has seen
else
  local passed = redis.pcall('ZRANGEBYSCORE', KEYS.fairness, '-inf', virtual, 'LIMIT', 0, limit)
  if #passed > 0 then
    redis.pcall('ZREM', KEYS.fairness, unpack(passed))
  end
  if paused == 0 then
    wake_server()
  end
end
publish_ended()

if #lapsed > 0 then
  first_lease = first_of(KEYS.active)
end
if first_lease >= 0 then
  first_lease = math.max(first_lease, spared)
end
next_due = math.min(next_due, first_lease)
local of_failures, of_crashes, since = {}, {}, {}
if #ids > 0 and unusual then
  of_failures, of_crashes = fields_of(KEYS.failures, ids), fields_of(KEYS.crashes, ids)
  since = read_since(ids)
end
return {
  to_text(now), next_due < math.huge and to_text(math.max(0, next_due - now)) or '-1', more,
  #recovered, #died, ids, messages, of_failures, of_crashes, since, own, paused, generation,
  left > 0 and 1 - paused or 0,
}
