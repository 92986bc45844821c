-- recover_expired: handle tasks whose lease expired, because their server died or stalled.

-- Return whether a member of a set can be a task id. Servers ignore all other members, so their
-- leases expire, and this script deletes them.
local function is_id(member)
  return string.find(member, '^[!-~]+$') ~= nil
end

-- Update the crash counts. Append the ids whose count reaches the limit to `died`, and the other
-- ids to `back`. A task's first crash always counts. Later crashes count only if the task was
-- marked as running. If the task ran together with other suspects, its first SPARED_MOST crashes do
-- not count.
-- Returns the number of crashes that counted.
local function count_crashes(ids, max_crashes, died, back)
  if #ids == 0 then
    return 0
  end
  local crashed, fields = 0, {}
  for i, text in ipairs(redis.call('HMGET', KEYS.crashes, unpack(ids))) do
    local crashes, spared = crash_count(text), spared_count(text)
    local sign = string.sub(text or '', -1)
    if sign == '-' and spared < SPARED_MOST then
      spared = spared + 1
    elseif crashes == 0 or sign == '+' or sign == '-' then
      crashes = crashes + 1
      crashed = crashed + 1
    end
    local of = crashes >= max_crashes and died or back
    of[#of + 1] = ids[i]
    fields[2 * i - 1] = ids[i]
    fields[2 * i] = crash_text(crashes, spared, of == died and '!' or '')
  end
  redis.call('HSET', KEYS.crashes, unpack(fields))
  return crashed
end

-- Make tasks dead. The messages and records of the tasks are kept until the tasks are trimmed.
local function make_dead(now, ids)
  if #ids == 0 then
    return
  end
  local dead = {}
  for i, id in ipairs(ids) do
    dead[2 * i - 1], dead[2 * i] = to_text(now), id
  end
  redis.call('ZADD', KEYS.dead, unpack(dead))
  -- flow:
  drop_holds(ids)
  -- end flow
  unlock(now, ids)
  delete_fields(KEYS.keys, ids)
  note_ended(ids)
  count(now, 'dead', #ids)
end

-- Make pending tasks without a message dead.
local function bury_lost(now, ids)
  check_set(KEYS.dead)
  redis.call('ZREM', KEYS.pending, unpack(ids))
  -- flow:
  release_ready(ids)
  -- end flow
  make_dead(now, ids)
end

-- Put tasks of other servers back at the head of `pending`; make tasks dead if they crashed too
-- often, and end tasks that have a cancel request. The caller's own tasks are only returned, since
-- the caller may still run them. Returns three lists of ids: own, back, died. The flow variant also
-- returns whether successors of tasks were put into `scheduled`.
local function recover_expired(now, server, max_crashes, lapsed)
  local own, cancelled, died, back, strange = {}, {}, {}, {}, {}
  if #lapsed == 0 then
    return own, back, died
  end
  local owners = redis.call('HMGET', KEYS.owner, unpack(lapsed))
  local cancels = redis.call('HMGET', KEYS.cancels, unpack(lapsed))
  local mine, taken, crashed = server .. '/', {}, {}
  for i, id in ipairs(lapsed) do
    local owner = owners[i]
    local of = cancels[i] and cancelled or crashed
    if not is_id(id) then
      of = strange
    elseif owner and string.sub(owner, 1, #mine) == mine then
      of = own
    end
    of[#of + 1] = id
    if of ~= own then
      taken[#taken + 1] = id
    end
  end
  check_hash(KEYS.crashes)
  check_set(KEYS.pending)
  check_set(KEYS.dead)
  check_end_cancelled()
  -- flow:
  local replaced, stopped
  stopped, cancelled, cancelled = split_successors(cancelled, cancelled)
  replaced, crashed, crashed = split_successors(crashed, crashed)
  if not limits_used and #replaced.ids + #stopped.ids > 0 then
    begin_limits(now, true)
  end
  -- end flow
  release_leases(taken)
  count(now, 'crashed', count_crashes(crashed, max_crashes, died, back))
  to_head(back)
  note_runnable(now, back)
  make_dead(now, died)
  end_cancelled(now, cancelled)
  forget_tasks(now, strange)
  -- flow:
  count(now, 'crashed', count_crashes(replaced.ids, math.huge, {}, back))
  start_successors(replaced, true)
  start_successors(stopped)
  if #replaced.ids + #stopped.ids > 0 then
    return own, back, died, true
  end
  -- end flow
  return own, back, died
end
