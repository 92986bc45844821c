-- replace_holder: replace the payload, the options and the due time of the task that holds a unique
-- lock with those of a later task. A waiting holder is changed in place. If the holder is active,
-- the later task is kept in `successors`; however the attempt ends, the holder then starts again
-- with that task (include/start_successors.lua). So the last payload always runs, and no two
-- payloads run at the same time. The message keeps the enqueue time of the first call whose payload
-- has not run; the maximum delay of a debounce counts from that time.

-- Fail before the first write if a replacement would fail.
local function check_replacements()
  check_set(KEYS.scheduled)
  check_set(KEYS.retry)
  check_set(KEYS.active)
  check_set(KEYS.fairness)
  check_hash(KEYS.keys)
  check_hash(KEYS.failures)
  check_hash(KEYS.successors)
  check_rights(KEYS.tasks, { 'HSET', 'HDEL', 'ZADD', 'ZREM', 'ZRANGE' })
end

-- Return the time for which the text of a due time stands: `+<us>` after now, `<us>` Unix time, or
-- empty for now.
local function time_of_due(now, text)
  local time = tonumber(text) or now
  return string.sub(text, 1, 1) == '+' and now + time or time
end

-- Return the time at which a task that replaces another is due; `first` is the time of the first
-- call. A debounced task is due `option[9]` after this call, but at most `option[10]` after the
-- first call.
local function replaced_due(now, option, first)
  if option[9] == 0 then
    return math.max(now, time_of_due(now, option[1]))
  end
  local due = now + option[9]
  if option[10] > 0 then
    due = math.min(due, first + option[10])
  end
  return math.max(now, due)
end

-- Return a message in its stored form: `head`, the time of enqueue, and the message.
local function stamped(head, time, message)
  return table.concat({ head, struct.pack('>I8', time), message })
end

-- Return the time of enqueue in a stored message; nothing when the message is too short.
local function stamped_time(head, stored)
  if #stored >= #head + 8 then
    return (struct.unpack('>I8', string.sub(stored, #head + 1, #head + 8)))
  end
end

-- Keep a task until the attempt of the active holder has ended.
local function keep_successor(now, head, message, option, holder)
  local before = redis.call('HGET', KEYS.successors, holder)
  local first = now
  local _, _, kept = read_successor(before)
  if kept then
    if string.sub(kept, #head + 9) == message then
      return
    end
    first = stamped_time(head, kept) or now
  end
  local due = replaced_due(now, option, first)
  local member = member_of(option[7], option[2])
  local record = successor_record(due, member, stamped(head, first, message))
  redis.call('HSET', KEYS.successors, holder, record)
end

-- Remove a waiting holder from the counts of its limits. Returns whether the holder had limits.
local function leave_limits(holder, set_key)
  if not limits_used then
    return false
  elseif set_key == KEYS.limited then
    remove_waiters({ holder })
    return true
  elseif set_key == KEYS.pending then
    release_ready({ holder })
  end
  return held_limits[holder] and true or false
end

-- Change a waiting holder. `set` is the name of its state.
local function change_waiting(now, head, message, option, holder, set_key, stored)
  local first = set_key ~= KEYS.retry and stamped_time(head, stored) or now
  local due = replaced_due(now, option, first)
  local member = member_of(option[7], option[2])
  local before = redis.call('HGET', KEYS.keys, holder) or ''
  local new_message = stamped(head, first, message)
  local tag = redis.call('ZSCORE', set_key, holder)
  local had_limits = leave_limits(holder, set_key)
  hold_limits_of(holder, new_message)
  if keeps_bytes() then
    add_bytes(#new_message - #stored)
  end
  redis.call('HSET', KEYS.tasks, holder, new_message)
  redis.call('HDEL', KEYS.failures, holder)
  redis.call('HDEL', KEYS.successors, holder)
  if member ~= '' then
    redis.call('HSET', KEYS.keys, holder, member)
  elseif before ~= '' then
    redis.call('HDEL', KEYS.keys, holder)
  end
  note_since({ to_text(due), holder })
  local keeps_place = due <= now and member == before
    and (set_key == KEYS.pending or set_key == KEYS.limited)
  if keeps_place and not (had_limits or held_limits[holder]) then
    return
  end
  if due > now and set_key == KEYS.scheduled then
    schedule_due(KEYS.scheduled, { to_text(due), holder })
    return
  end
  redis.call('ZREM', set_key, holder)
  if due > now then
    schedule_due(KEYS.scheduled, { to_text(due), holder })
  elseif keeps_place then
    if add_pending({ tag, holder }) > 0 and set_key == KEYS.limited then
      wake_server()
    end
  else
    to_pending({ holder })
    wake_server()
  end
end

-- Replace the holder of a task's lock with the task. Returns the outcome: `replaced`; or
-- `duplicate` if the holder has ended and only the window of its lock is left. After `duplicate`,
-- another task may already have the holder's id. A repeated call finds the message that the first
-- call wrote, and changes nothing.
local function replace_holder(now, head, message, option, holder)
  local stored = redis.call('HGET', KEYS.tasks, holder)
  if not stored then
    return 'duplicate'
  elseif string.sub(stored, #head + 9) == message then
    return 'replaced'
  elseif redis.call('HGET', KEYS.unique, '@' .. holder) ~= option[3] then
    return 'duplicate'
  end
  for _, set_key in ipairs({ KEYS.scheduled, KEYS.pending, KEYS.limited, KEYS.retry }) do
    if redis.call('ZSCORE', set_key, holder) then
      change_waiting(now, head, message, option, holder, set_key, stored)
      return 'replaced'
    end
  end
  if redis.call('ZSCORE', KEYS.active, holder) then
    keep_successor(now, head, message, option, holder)
    return 'replaced'
  end
  return 'duplicate'
end

-- Replace holders; `replacing` alternates places and holders. If several tasks of a call replace
-- one holder, only the last of them has an effect. Appends the place, outcome and holder of each
-- task to `others`.
local function replace_holders(now, head, tasks, replacing, others)
  local last, outcomes = {}, {}
  for at = 1, #replacing, 2 do
    last[replacing[at + 1]] = replacing[at]
  end
  for at = 1, #replacing, 2 do
    local holder = replacing[at + 1]
    local place = last[holder]
    outcomes[holder] = outcomes[holder]
      or replace_holder(now, head, tasks.messages[place], tasks.options[place], holder)
    others[#others + 1] = replacing[at]
    others[#others + 1] = outcomes[holder]
    others[#others + 1] = holder
  end
end
