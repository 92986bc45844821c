#!lua flags=allow-oom
-- purge: delete the first tasks of a state. Active tasks are deleted only if their lease has
-- expired, since other active tasks are running. If the tasks are large, a call deletes fewer than
-- requested: at most 16 MiB, or one task.
-- include: check_schema preconditions clock wake_server
-- include: message_limits limit_states waiter_entries limit_waiters
-- flow include: message_bytes
-- include: unique_locks ended_tasks forget_tasks page_position record_event
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
-- KEYS[14] cancels   hash    id -> retention us
-- KEYS[15] progress  hash    id -> done/total, or @<us> at which it became runnable
-- KEYS[16] done      channel of ended tasks
-- KEYS[17] meta      hash    schema
-- KEYS[18] recent  zset    ids that callers chose, by expiry time
-- KEYS[19] limited   zset    ids by order tag
-- KEYS[20] successors  hash    id -> due us, member and message of its next run
-- KEYS[21] wake      list
-- KEYS[22] idle      zset    ids of servers that a message wakes
-- KEYS[23] waiters   zset    limit and id of each limited task
-- KEYS[24] holds     hash    id -> its limits, of unfinished tasks
-- KEYS[25] limits    hash    limit -> its state
-- KEYS[26] limit_rules hash    name -> its rule
-- KEYS[27] openings  zset    limits by the time at which they open, us
-- KEYS[28] events    stream  actions of operators
-- ARGV[1] now        int us  empty: the store's clock
-- ARGV[2] event    bytes   record of the action, see include/record_event.lua; empty: none
-- ARGV[3] state      text
-- ARGV[4] count      int     maximum number of tasks, 1 to 500
-- ARGV[5] score      number  score of the last task to delete; empty: all that exist now
-- ARGV[6] id         text    id of that task
-- REPLY[1] deleted   int     number of deleted tasks
-- REPLY[2] left      int     number left in the state
-- REPLY[3] more      flag    whether more tasks are left to delete
-- REPLY[4] score     text    score of the last task to delete
-- REPLY[5] id        bytes   id of that task
check_schema()
local now, state, count = clock(ARGV.now), ARGV.state, tonumber(ARGV.count)
local set = ({
  pending = KEYS.pending, scheduled = KEYS.scheduled, active = KEYS.active, retry = KEYS.retry,
  completed = KEYS.completed, dead = KEYS.dead, limited = KEYS.limited,
})[state]

local last_score, last_id = ARGV.score, ARGV.id
if last_score == '' then
  local last = redis.call('ZRANGE', set, -1, -1, 'WITHSCORES')
  if #last == 0 then
    return reply({})
  end
  last_id, last_score = last[1], last[2]
end

-- Return whether to delete a task.
local function goes(score, id)
  if state == 'active' and score > now then
    return false
  end
  local limit = tonumber(last_score)
  return score < limit or score == limit and not bytes_before(last_id, id)
end

local found = redis.call('ZRANGE', set, 0, count, 'WITHSCORES')
local with_results = redis.call('EXISTS', KEYS.results) == 1
local gone, bytes, more = {}, 0, false
for i = 1, #found, 2 do
  local id = found[i]
  if not goes(tonumber(found[i + 1]), id) then
    break
  end
  bytes = bytes + redis.call('HSTRLEN', KEYS.tasks, id)
  if with_results then
    bytes = bytes + redis.call('HSTRLEN', KEYS.results, id)
  end
  if #gone == count or #gone > 0 and bytes > 16777216 then
    more = true
    break
  end
  gone[#gone + 1] = id
end
if #gone > 0 then
  check_hash(KEYS.tasks)
  check_hash(KEYS.owner)
  check_rights(KEYS.tasks, { 'HDEL', 'HMGET', 'EXISTS', 'ZCARD' })
  begin_limits(now)
  if state == 'limited' then
    remove_waiters(gone)
  elseif state == 'pending' then
    release_ready(gone)
  end
  redis.call('ZREM', set, unpack(gone))
  if state == 'active' then
    release_leases(gone)
  end
  forget_tasks(now, gone)
  if settle_limits() then
    wake_server()
  end
end
forget_recent_ids(gone)
note_ended(gone)
publish_ended()
record_event(now, ARGV.event, #gone, gone)
return reply({
  deleted = #gone, left = redis.call('ZCARD', set), more = more, score = last_score, id = last_id,
})
