#!lua flags=allow-oom
-- reschedule: change the due time of a scheduled or retried task. The next fetch promotes a task
-- that is already due, so a fetch and this script never both move it. A due time in the past counts
-- as now; a due time at or after the task's deadline changes nothing. A repeated call changes
-- nothing and returns the same reply as the first call.
-- include: check_schema clock wake_server schedule_due note_runnable record_event client_calls
-- include: message_limits
-- KEYS[1] tasks      hash    id -> message
-- KEYS[2] pending    zset    ids by order tag
-- KEYS[3] scheduled  zset    ids by due time
-- KEYS[4] active     zset    ids by lease expiry
-- KEYS[5] retry      zset    ids by due time
-- KEYS[6] completed  zset    ids by end of retention
-- KEYS[7] dead       zset    ids by time of death
-- KEYS[8] limited    zset    ids by order tag
-- KEYS[9] cancels    hash    id -> retention us
-- KEYS[10] progress  hash    id -> done/total, or @<us> at which it became runnable
-- KEYS[11] wake      list
-- KEYS[12] meta      hash    schema
-- KEYS[13] idle      zset    ids of servers that a message wakes
-- KEYS[14] events    stream  actions of operators
-- KEYS[15] calls     hash    sender -> its last call
-- ARGV[1] now        int us  empty: the store's clock
-- ARGV[2] event    bytes   record of the action, see include/record_event.lua; empty: none
-- ARGV[3] id         text
-- ARGV[4] due        text    `+<us>` after now, or `<us>` Unix time
-- ARGV[5] sender     text    of a client, which numbers its calls; empty: none
-- ARGV[6] number     int
-- ARGV[7] dry        flag    whether to change nothing
-- REPLY[1] state     text    state of the task; empty: it is not in the queue
-- REPLY[2] due       text    its new due time, us; empty: its state has none, so nothing changed
-- REPLY[3] deadline  text    the task's deadline, us, if it prevented the change
check_schema()
local now, id = clock(ARGV.now), ARGV.id

local states = { 'scheduled', 'retry', 'pending', 'active', 'completed', 'dead', 'limited' }
local state
for at, set_key in ipairs({
  KEYS.scheduled, KEYS.retry, KEYS.pending, KEYS.active, KEYS.completed, KEYS.dead, KEYS.limited,
}) do
  if not state and redis.call('ZSCORE', set_key, id) then
    state = states[at]
  end
end
if state == 'completed' and redis.call('HEXISTS', KEYS.cancels, id) == 1 then
  state = 'cancelled'
end
local set = ({ scheduled = KEYS.scheduled, retry = KEYS.retry })[state]
local first = first_call(ARGV.sender, ARGV.number) or first_event(ARGV.event)
local began, due = first or now, tonumber(ARGV.due)
if string.sub(ARGV.due, 1, 1) == '+' then
  due = began + due
end
due = math.max(began, due)
if first then
  return reply({ state = set and state or 'scheduled', due = to_text(due) })
end
local message = set and redis.call('HGET', KEYS.tasks, id)
if not message then
  return reply({ state = state })
end
local deadline = deadline_of_message(message)
if due >= deadline then
  return reply({ state = state, due = to_text(due), deadline = to_text(deadline) })
end
due = to_text(due)
if ARGV.dry == '1' then
  return reply({ state = state, due = due })
end
schedule_due(set, { due, id })
note_since({ due, id })
note_call(now, ARGV.sender, ARGV.number)
record_event(now, ARGV.event, 1, { id })
return reply({ state = state, due = due })
