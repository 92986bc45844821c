#!lua
-- tick_schedules: enqueue the tasks of the due ticks of stored schedules, and set their next ticks.
-- A schedule that was put, deleted, resumed or ticked since the caller read it is not changed.
-- Ticks are skipped if the schedule is paused, or if servers publish its name as a periodic task of
-- their program. Each call records the time at which it ran. If the recorded time is over an hour
-- in the future, the clock was set back. Servers then plan all ticks again; when they have done so,
-- a call without schedules records this.
-- variants: plain flow
-- include: check_schema preconditions ensure_schema clock wake_server counters
-- flow include: message_limits limit_states waiter_entries limit_waiters priority_bands
-- include: fairness_tags unique_locks schedule_due
-- flow include: note_runnable successors message_bytes ended_tasks forget_tasks
-- flow include: queue_bounds replace_holder
-- include: insert_tasks stored_records
-- KEYS[1] tasks      hash    id -> message
-- KEYS[2] pending    zset    ids by order tag
-- KEYS[3] scheduled  zset    ids by due time
-- KEYS[4] unique     hash    locks
-- KEYS[5] keys       hash    id -> fairness key
-- KEYS[6] fairness   zset    fairness keys by last tag
-- KEYS[7] wake       list
-- KEYS[8] meta       hash    virtual time, weights, ticked
-- KEYS[9] stats      hash    counters
-- KEYS[10] stored_schedules hash  name -> time of the put (us, 8 bytes), then the record
-- KEYS[11] next_ticks zset   schedules by next tick, us
-- KEYS[12] schedules hash    =<schedule>, @<schedule> of programs; !<schedule> while it is paused
-- KEYS[13] idle      zset    ids of servers that a message wakes
-- flow KEYS[14] retry  zset    ids by due time
-- flow KEYS[15] active  zset    ids by lease expiry
-- flow KEYS[16] failures  hash    id -> failure record
-- flow KEYS[17] progress  hash    id -> done/total, or @<us> at which it became runnable
-- flow KEYS[18] successors  hash    id -> due us, member and message of its next run
-- flow KEYS[19] limited   zset    ids by order tag
-- flow KEYS[20] waiters   zset    limit and id of each limited task
-- flow KEYS[21] holds     hash    id -> its limits, of unfinished tasks
-- flow KEYS[22] limits    hash    limit -> its state
-- flow KEYS[23] limit_rules hash    name -> its rule
-- flow KEYS[24] openings  zset    limits by the time at which they open, us
-- flow KEYS[25] crashes    hash    id -> crash count
-- flow KEYS[26] results    hash    id -> result record
-- flow KEYS[27] cancels    hash    id -> retention us
-- flow KEYS[28] recent     zset    ids that callers chose, by expiry time
-- flow KEYS[29] done       channel of ended tasks
-- ARGV[1] now        int us  empty: the store's clock
-- ARGV[2] head       bytes   first bytes of each message, in front of the time stamp
-- ARGV[3] silence    int us  time after its last publication for which a periodic task is live
-- ARGV[4...] per schedule: name; first 8 bytes of its record; tick that was due, us; next tick, us;
--   number of tasks; and for each task three values, as for enqueue with a stride of 3: id,
--   message, options
-- returns one outcome per schedule: ticked, changed, paused, program, or lost (it has no record, and
--   its entry in next_ticks was deleted)
local now, silence = clock(ARGV.now), tonumber(ARGV.silence)

-- Return the outcome of a schedule's ticks.
local function outcome_of(id, stamp, due)
  local record = redis.call('HGET', KEYS.stored_schedules, id)
  local score = redis.call('ZSCORE', KEYS.next_ticks, id)
  if not record then
    return 'lost'
  elseif string.sub(record, 1, 8) ~= stamp or tonumber(score or '') ~= due then
    return 'changed'
  elseif published_lately(now, silence, id) then
    return 'program'
  end
  return redis.call('HEXISTS', KEYS.schedules, '!' .. id) == 1 and 'paused' or 'ticked'
end

local noted = redis.call('HMGET', KEYS.meta, 'schema', 'ticked')
local layout = noted[1]
is_current_schema(layout)
local values, outcomes, lost, moves, tasks = {}, {}, {}, {}, {}
for i = 4, #ARGV do
  values[#values + 1] = ARGV[i]
end
local at = 1
while at <= #values do
  local id, stop = values[at], at + 5 + 3 * tonumber(values[at + 4])
  local outcome = outcome_of(id, values[at + 1], tonumber(values[at + 2]))
  outcomes[#outcomes + 1] = outcome
  if outcome == 'lost' then
    lost[#lost + 1] = id
  elseif outcome ~= 'changed' then
    moves[#moves + 1] = values[at + 3]
    moves[#moves + 1] = id
  end
  if outcome == 'ticked' then
    for i = at + 5, stop - 1 do
      tasks[#tasks + 1] = values[i]
    end
  end
  at = stop
end
check_rights(KEYS.next_ticks, { 'ZADD', 'ZREM' })
if #tasks > 0 then -- comes first: a full queue refuses the tasks before anything is written
  ensure_schema(layout)
  local virtual = redis.call('HGET', KEYS.meta, 'v')
  insert_tasks(now, ARGV.head, read_tasks(tasks, 1, 3), virtual)
end
if #values == 0 or #moves > 0 and now > parse_int(noted[2], 0) then
  redis.call('HSET', KEYS.meta, 'ticked', to_text(now))
end
if #moves > 0 then
  redis.call('ZADD', KEYS.next_ticks, unpack(moves))
end
if #lost > 0 then
  redis.call('ZREM', KEYS.next_ticks, unpack(lost))
end
return outcomes
