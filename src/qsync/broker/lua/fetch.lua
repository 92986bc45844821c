#!lua flags=allow-oom
-- fetch: do the queue's upkeep and lease pending tasks to a server. All servers share the upkeep.
-- Steps: 1 promote due tasks; 2 recover tasks with expired leases (delayed after an outage);
-- 3 lease; 4 sweep; 5 wake the next idle server.
-- A fetch that repeats the last number returns the same tasks, except those that its token no
-- longer owns.
-- A queue without tasks, or with only dead ones, gets upkeep only every few minutes.
-- A fetch that finds no tasks and no upkeep writes nothing, so an idle queue costs no disk space
-- and no replication. A fetch that writes nothing is not recorded, so a fetch that repeats its
-- number is an ordinary fetch. A fetch with `again` is recorded, so that a late copy of the call
-- finds its number.
-- The first fetch from a queue sets the generation; if the generation changes later, data were
-- lost.
-- variants: plain flow
-- flow include: message_bytes
-- include: check_schema preconditions ensure_schema clock queue_reads wake_server counters
-- flow include: message_limits limit_states waiter_entries limit_waiters priority_bands
-- include: crash_counts fairness_tags unique_locks ended_tasks forget_tasks runnable_since
-- include: note_runnable
-- flow include: schedule_due successors start_successors band_times
-- include: replay_fetch promote_due outage_grace recover_expired lease_pending
-- include: sweep_expired wake_next
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
-- flow KEYS[25] successors  hash    id -> due us, member and message of its next run
-- flow KEYS[26] limited  zset    ids by order tag
-- flow KEYS[27] waiters   zset    limit and id of each limited task
-- flow KEYS[28] holds     hash    id -> its limits, of unfinished tasks
-- flow KEYS[29] limits    hash    limit -> its state
-- flow KEYS[30] limit_rules hash    name -> its rule
-- flow KEYS[31] openings  zset    limits by the time at which they open, us
-- ARGV[1] now          int us  empty: the store's clock
-- ARGV[2] server       text    id of the server
-- ARGV[3] number       int     number of this fetch; rises per server and queue
-- ARGV[4] wanted       int     maximum number of tasks, 0 to 500
-- ARGV[5] lease        int us
-- ARGV[6] max_crashes  int     number of crashes after which a task is dead
-- ARGV[7] dead_limit   int     maximum number of dead tasks to keep
-- ARGV[8] dead_age     int us  maximum age of dead tasks
-- ARGV[9] max_bytes    int     maximum size of the messages; the first task may exceed it
-- ARGV[10] again       int     1: this number was sent before and got no reply
-- flow ARGV[11] free   int     maximum number of tasks with limits to lease: the free slots
-- flow ARGV[12] rules  text    generation for which the server has published its program's rules;
--                              with another one, no tasks with limits are leased; empty: any
-- REPLY[1] now         int   us
-- REPLY[2] next_due    int   us until the next task or upkeep is due; -1: none known
-- REPLY[3] more        flag  whether upkeep has more to do
-- REPLY[4] recovered   int   number of tasks recovered
-- REPLY[5] died        int   number of tasks that became dead because of crashes
-- REPLY[6] ids         list
-- REPLY[7] messages    list
-- REPLY[8] failures    list  failure records
-- REPLY[9] crashes     list  crash counts
-- REPLY[10] since      list  @<us> if the store has the time at which a task became runnable
-- REPLY[11] own_lapsed list  ids of the caller whose lease expired
-- REPLY[12] paused     flag
-- REPLY[13] generation text
-- plain REPLY[14] left flag  whether more tasks can be fetched
-- flow REPLY[14] left  int   1: more tasks can be fetched; 2: only by a server with free slots;
--                             3: more, and tasks with limits were not leased without free slots
-- returns the fields of REPLY; ids, messages and the three lists after them match by position
local stored = redis.call(
  'HMGET', KEYS.meta, 'schema', 'paused', 'generation', 'v', 'seen', 'returned', 'swept'
)
ensure_schema(stored[1])
local now, server, number = clock(ARGV.now), ARGV.server, tonumber(ARGV.number)
local paused, generation, virtual = stored[2] ~= false, stored[3], read_tag(stored[4])
local lease, dead_age = tonumber(ARGV.lease), tonumber(ARGV.dead_age)
local wanted = paused and 0 or tonumber(ARGV.wanted)
local token, again, limit = server .. '/' .. ARGV.number, ARGV.again == '1', 100

if not generation then
  generation = server .. '@' .. to_text(now)
  redis.call('HSET', KEYS.meta, 'generation', generation)
end

-- Return a reply; each reply has the time, the generation, and whether the queue is paused.
-- The first message may exceed max_bytes, but no client writes a message of over 32 MiB. If a
-- longer message took too long to receive, the server would request it again and again, so the
-- script returns only its beginning, which the server cannot decode.
local function answer(fields)
  local first = fields.messages and fields.messages[1]
  if first and #first > 33554432 then
    fields.messages[1] = string.sub(first, 1, 1000)
  end
  fields.now, fields.generation, fields.paused = now, generation, paused
  return reply(fields)
end

local head = read_pending(0, wanted)
if #head == 0 and is_idle(now, stored[7], dead_age) then
  if again then
    redis.call('HSET', KEYS.fetches, server, ARGV.number .. ' ' .. to_text(now))
  end
  return answer({ next_due = -1 })
end
local last = redis.call('HMGET', KEYS.fetches, server)[1]
local before, batch = string.match(last or '', '^(%d+) %d+(.*)$')
before = parse_int(before, -1)
if number < before then
  return answer({ next_due = -1 })
end
if number == before then
  local ids, messages = replay_fetch(batch, token)
  return answer({
    ids = ids, messages = messages, failures = fields_of(KEYS.failures, ids),
    -- flow:
    crashes = fields_of(KEYS.crashes, ids), since = read_since(ids), left = paused and 0 or 1,
    -- plain:
    crashes = fields_of(KEYS.crashes, ids), since = read_since(ids), left = not paused,
    -- end flow
  })
end
local unusual = has_unusual_keys()
-- flow:
begin_limits(now)
-- end flow

-- 1 promote
local next_due, more, moved = math.huge, false, false
if unusual then
  next_due, more, moved = promote_due(now, limit)
end

-- 2 recover
local first_lease = lowest_score(KEYS.active)
local grace_end, lapsed, own, recovered, died = 0, {}, {}, {}, {}
if first_lease < math.huge then
  grace_end = outage_grace(now, lease, stored[5], stored[6])
  local until_when = grace_end > 0 and 0 or now
  lapsed = first_lease <= until_when and due_ids(KEYS.active, until_when, limit) or {}
end
if #lapsed > 0 then
  check_transitions()
  -- flow:
  local started_again
  own, recovered, died, started_again =
    recover_expired(now, server, tonumber(ARGV.max_crashes), lapsed)
  if started_again then
    local due, rest = promote_due(now, limit)
    next_due, more = math.min(next_due, due), more or rest
  end
  -- plain:
  own, recovered, died = recover_expired(now, server, tonumber(ARGV.max_crashes), lapsed)
  -- end flow
  more = more or #lapsed == limit and #own < limit
  unusual, moved = true, true
end

-- flow:
moved, more = open_due_limits(limit, moved, more)

-- end flow
-- 3 lease
if moved then
  head = read_pending(0, wanted)
end
-- flow:
local ids, messages, lost, left, parked, refused, for_whom = take_pending(
  head, wanted, tonumber(ARGV.max_bytes), limit,
  ARGV.rules ~= '' and ARGV.rules ~= generation and 0 or tonumber(ARGV.free)
)
-- plain:
local ids, messages, lost, left = take_pending(head, wanted, tonumber(ARGV.max_bytes), limit)
-- end flow
if #lost > 0 then
  check_transitions()
end
if #ids > 0 then
  -- flow:
  local tags = last_tags(ids)
  write_leases(ids, token, now + lease)
  advance_bands(tags)
  -- plain:
  local tag = redis.call('ZSCORE', KEYS.pending, ids[#ids])
  write_leases(ids, token, now + lease)
  if read_tag(tag) > virtual then
    virtual = read_tag(tag)
    redis.call('HSET', KEYS.meta, 'v', tag)
  end
  -- end flow
end
-- flow:
if #parked > 0 then
  park_pending(parked, refused)
end
-- end flow
if #lost > 0 then
  bury_lost(now, lost)
  unusual, more = true, more or #lost >= limit
end
-- flow:
if #ids > 0 or #parked > 0 or again then
-- plain:
if #ids > 0 or again then
-- end flow
  local record = { ARGV.number, to_text(now), unpack(ids) }
  redis.call('HSET', KEYS.fetches, server, table.concat(record, ' '))
end
if first_lease == math.huge and (left or #ids + #lost > 0) then
  outage_grace(now, lease, stored[5], stored[6])
end

-- 4 sweep: delete a little more than was leased, so that sweeps keep up with any throughput
if sweep_expired(now, limit, #ids, stored[7], unusual, tonumber(ARGV.dead_limit), dead_age) then
  more = true
end

-- 5 wake
-- flow:
if select(2, settle_limits()) then
  left, for_whom = true, for_whom == 2 and 3 or for_whom
end
-- end flow
wake_next(left, paused, virtual, limit)
publish_ended()

if #lapsed > 0 then
  first_lease = lowest_score(KEYS.active)
elseif #ids > 0 then
  first_lease = math.min(first_lease, now + lease)
end
if first_lease >= 0 then
  first_lease = math.max(first_lease, grace_end)
end
next_due = math.min(next_due, first_lease)
-- flow:
next_due = math.min(next_due, lowest_score(KEYS.openings))
-- end flow
local fields = {
  next_due = next_due < math.huge and math.min(math.max(0, next_due - now), 2 ^ 53) or -1, more = more,
  recovered = #recovered, died = #died, ids = ids, messages = messages, own_lapsed = own,
  -- flow:
  left = left and not paused and for_whom or 0,
  -- plain:
  left = left and not paused,
  -- end flow
}
if #ids > 0 and unusual then
  fields.failures, fields.crashes = fields_of(KEYS.failures, ids), fields_of(KEYS.crashes, ids)
  fields.since = read_since(ids)
end
return answer(fields)
