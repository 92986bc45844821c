-- limit_states: the rules of limits, and how much of each limit is in use. A rule is `<concurrency>
-- <rate> <per us> <burst>`, 0 for none; the record of an operator's rule also has when it was set
-- and by whom. A state is `<in use> <ready> <tat us> <closed until us>`: in use are active tasks
-- that hold the limit, ready are pending ones. Rates use GCRA; tat is its theoretical arrival time.
-- States are read once per script, changed here, and written by save_limits.

local limits_now, limits_used = 0, false
local limit_states, touched_limits, held_limits = {}, {}, {}
local type_limits

-- Return the limits of paused types as a set. A task of a paused type waits for the limit `@<type>`,
-- which has no slots; no task holds it, and no other limit has a name that begins like it. The field
-- `@` of `limit_rules` has these types, separated by zero bytes, and `@<type>` the note of a pause.
local function paused_limits()
  if not type_limits then
    type_limits = {}
    local types = redis.call('HGET', KEYS.limit_rules, '@') or ''
    for name in string.gmatch(types, '[^%z]+') do
      type_limits[table.concat({ '@', name })] = true
    end
  end
  return type_limits
end

local function is_type_limit(limit)
  return string.byte(limit) == 64
end

-- Return the limit `@<type>` of the type in a stored message; nil if the message is lost or damaged.
-- In front of the type are 11 bytes that the store adds, and a nonce of 10 bytes.
local function type_limit(message)
  local kind, length, low = string.byte(message or '', 22, 24)
  local first, last = 23, 0
  if kind and kind >= 0xa0 and kind < 0xc0 then
    last = 22 + kind - 0xa0
  elseif kind == 0xd9 and length then
    first, last = 24, 23 + length
  elseif kind == 0xda and low then
    first, last = 25, 24 + 256 * length + low
  end
  return last >= first and table.concat({ '@', string.sub(message, first, last) }) or nil
end

-- Return the limit of the type in a stored message if that type is paused.
local function paused_limit(message)
  if next(paused_limits()) == nil then
    return nil
  end
  local limit = type_limit(message)
  return limit and type_limits[limit] and limit or nil
end

-- Begin with the time `now`; `needed` if this call brings tasks with limits, or starts successors,
-- which hold none before. A queue without any
-- keys of limits costs one command, and all other functions do nothing. Fails before the first
-- write if a later one would fail.
local function begin_limits(now, needed)
  limits_now = now
  limits_used = next(paused_limits()) ~= nil or needed or redis.call(
    'EXISTS', KEYS.holds, KEYS.limits, KEYS.limited, KEYS.waiters, KEYS.openings
  ) > 0
  if not limits_used then
    return
  end
  check_hash(KEYS.holds)
  check_hash(KEYS.limits)
  check_hash(KEYS.limit_rules)
  check_hash(KEYS.tasks)
  check_set(KEYS.limited)
  check_set(KEYS.waiters)
  check_set(KEYS.openings)
  check_set(KEYS.pending)
  check_rights(KEYS.tasks, {
    'EXISTS', 'HMGET', 'HSET', 'HDEL', 'ZADD', 'ZREM', 'ZMSCORE', 'ZRANGEBYLEX',
  })
end

local unlimited = { slots = math.huge, interval = 0, tolerance = 0, lateness = 0 }
local no_slots = { slots = 0, interval = 0, tolerance = 0, lateness = 0 }

-- What was read before, by text: rules and the counts in states. Many limits have the same rule, and
-- many states without a time are alike. `by_field` has stored rules by field of limit_rules, and
-- `by_name` the rules of names, which many limits share: the operator's, else the program's. `late`
-- has by limit how late this script opens it, in us.
local known = { rules = {}, counts = {}, by_field = {}, by_name = {}, late = {}, all_fields = false }

-- Return a rule as a table; false when it is not valid. `lateness` is the longest time by which a task
-- may start after its limit opened without making the next ones later. It is less than the time between
-- two starts, so at most rate + burst tasks start in any window.
local function read_rule(text)
  local rule = known.rules[text]
  if rule == nil then
    local slots, rate, per, burst = string.match(text, '^(%d+) (%d+) (%d+) (%d+)')
    slots, rate = tonumber(slots), tonumber(rate)
    local interval = slots and rate > 0 and tonumber(per) / rate or 0
    rule = slots and {
      slots = slots > 0 and slots or math.huge, interval = interval,
      tolerance = math.max(0, tonumber(burst) - 1) * interval,
      lateness = math.min(interval / 2, 50000),
    } or false
    known.rules[text] = rule
  end
  return rule
end

-- Return the stored tat, capped at that of a limit that has just used its whole burst: it may stem
-- from a lower rate that was raised since.
local function known_tat(tat, rule)
  if tat <= limits_now or rule.interval == 0 then
    return tat
  end
  return math.min(tat, math.ceil(limits_now + rule.interval + rule.tolerance))
end

-- Return the state that is stored in `text`, under a rule. `waits` is whether tasks wait for the limit;
-- nil: not known.
local function new_limit_state(text, rule)
  local counts = known.counts[text]
  if not counts and text then
    local use, ready, tat, closed = string.match(text, '^(%d+) (%d+) (%d+) (%d+)$')
    counts = { tonumber(use or 0), tonumber(ready or 0), tonumber(tat or 0), tonumber(closed or 0) }
    if counts[3] + counts[4] == 0 then
      known.counts[text] = counts
    end
  end
  return {
    use = counts and counts[1] or 0, ready = counts and counts[2] or 0,
    tat = counts and known_tat(counts[3], rule) or 0, closed = counts and counts[4] or 0,
    stored_tat = counts and counts[3] or 0, stored = text, rule = rule, touched = false, waits = nil,
  }
end

-- Read the rules in these fields. For many fields one scan may read all rules: the store returns a
-- small hash as a whole.
local function read_rule_fields(fields)
  if #fields > 40 and not known.all_fields then
    local part = redis.call('HSCAN', KEYS.limit_rules, '0', 'COUNT', 10)
    known.all_fields = part[1] == '0'
    for i = 1, known.all_fields and #part[2] or 0, 2 do
      known.by_field[part[2][i]] = part[2][i + 1]
    end
  end
  if known.all_fields or #fields == 0 then
    return
  end
  for i, text in ipairs(redis.call('HMGET', KEYS.limit_rules, unpack(fields))) do
    known.by_field[fields[i]] = text
  end
end

-- Read the rules of limits. An operator's rule for this limit comes first, then an operator's rule
-- for its name, then the program's. The name of `customer:42` is `customer`. Returns one rule per
-- limit.
local function read_rules(limits)
  local fields, names, rules, by_field, by_name = {}, {}, {}, known.by_field, known.by_name
  local fresh = {}
  for i, limit_name in ipairs(limits) do
    local name = string.match(limit_name, '^[^:]*')
    names[i], fields[i] = name, '!' .. limit_name
    if by_name[name] == nil then
      by_name[name] = unlimited
      fresh[#fresh + 1] = name
    end
  end
  for _, name in ipairs(fresh) do
    fields[#fields + 1] = '!' .. name
    fields[#fields + 1] = name
  end
  read_rule_fields(fields)
  for _, name in ipairs(fresh) do
    local own, program = by_field['!' .. name], by_field[name]
    by_name[name] = own and read_rule(own) or program and read_rule(program) or unlimited
  end
  for i, name in ipairs(names) do
    local own = by_field[fields[i]]
    rules[i] = own and read_rule(own) or by_name[name]
  end
  return rules
end

-- Read the states of limits that were not read before.
local function read_limits(limits)
  local fresh = {}
  for _, limit in ipairs(limits) do
    if limit_states[limit] == nil and is_type_limit(limit) then
      limit_states[limit] = new_limit_state(false, paused_limits()[limit] and no_slots or unlimited)
    elseif limit_states[limit] == nil then
      limit_states[limit] = false
      fresh[#fresh + 1] = limit
    end
  end
  for first = 1, #fresh, 500 do
    local part = { unpack(fresh, first, math.min(first + 499, #fresh)) }
    local states, rules = redis.call('HMGET', KEYS.limits, unpack(part)), read_rules(part)
    for i, limit in ipairs(part) do
      limit_states[limit] = new_limit_state(states[i], rules[i])
    end
  end
end

-- Return the state of a limit, which save_limits writes.
local function touch_limit(limit)
  if not limit_states[limit] then
    read_limits({ limit })
  end
  local state = limit_states[limit]
  if not state.touched then
    state.touched = true
    touched_limits[#touched_limits + 1] = limit
  end
  return state
end

-- Return the time from which one more task than the ready ones may start by rate; 0: at any time.
local function limit_opens_at(state)
  local rule = state.rule
  if rule.interval == 0 then
    return state.closed
  end
  local due = math.max(state.tat, limits_now) + state.ready * rule.interval - rule.tolerance
  return math.max(state.closed, due)
end

-- Touch the limits whose stored tat is later than their rule allows, so that it is corrected, and with
-- it the time at which they open. Returns whether there are any.
local function correct_starts(limits)
  local any = false
  read_limits(limits)
  for _, limit in ipairs(limits) do
    if limit_states[limit].tat < limit_states[limit].stored_tat then
      touch_limit(limit)
      any = true
    end
  end
  return any
end

local function is_limit_full(state)
  return state.use + state.ready >= state.rule.slots
end

local function is_limit_open(state)
  return not is_limit_full(state) and limit_opens_at(state) <= limits_now
end

-- Return the limits, joined by zero bytes.
local function limits_in(text)
  if text and text ~= '' and not string.find(text, '\0', 1, true) then
    return { text }
  end
  local limits = {}
  for limit in string.gmatch(text or '', '[^%z]+') do
    limits[#limits + 1] = limit
  end
  return limits
end

-- Bytes that the length of a text, of bytes or of a number takes in msgpack, by its first byte.
local LENGTH_BYTES = {
  [0xc4] = 1, [0xd9] = 1, [0xc5] = 2, [0xda] = 2, [0xc6] = 4, [0xdb] = 4,
}
local NUMBER_BYTES = { [0xcc] = 1, [0xcd] = 2, [0xce] = 4, [0xcf] = 8 }

-- Return the position after the text, bytes, number or flag at `at`. (cmsgpack knows no bytes.)
local function after_element(message, at)
  local kind = string.byte(message, at)
  if kind >= 0xa0 and kind < 0xc0 then
    return at + 1 + kind - 0xa0
  elseif LENGTH_BYTES[kind] then
    local length = 0
    for i = at + 1, at + LENGTH_BYTES[kind] do
      length = length * 256 + string.byte(message, i)
    end
    return at + 1 + LENGTH_BYTES[kind] + length
  end
  return at + 1 + (NUMBER_BYTES[kind] or 0)
end

-- Return the limits in a message; none if it is lost or damaged. Its options are the last of eight
-- elements.
local function limits_of_message(message)
  local known, options = pcall(function()
    local at = 2
    for _ = 1, 7 do
      at = after_element(message, at)
    end
    return (cmsgpack.unpack(string.sub(message, at)))
  end)
  local limits = known and type(options) == 'table' and options.lm
  -- A list of anything but limits, from a message that no client wrote, would fail the script, and so
  -- stop the whole queue.
  for i, limit in pairs(type(limits) == 'table' and limits or {}) do
    if not (type(i) == 'number' and i >= 1 and i <= 4 and type(limit) == 'string'
      and #limit > 0 and not is_type_limit(limit) and not string.find(limit, '\0', 1, true)) then
      return {}
    end
  end
  return type(limits) == 'table' and limits or {}
end

-- Return whether the limits in a message are this one alone, if that is seen without decoding it: the
-- options end with its name. False if it is not sure.
local function has_only_limit(message, limit)
  local size = #limit
  local head = size < 32 and 5 or 6
  local at = #message - size - head + 1
  if at < 32 or size > 255 then
    return false
  end
  local a, l, m, count, kind, length = string.byte(message, at, at + head - 1)
  return a == 0xa2 and l == 0x6c and m == 0x6d and count == 0x91
    and (kind == 0xa0 + size and head == 5 or kind == 0xd9 and length == size)
    and string.find(message, limit, at + head, true) == at + head
end

-- Read what tasks hold, for ids that were not read before, with the states of these limits.
local function read_holds(ids)
  local fresh, limits = {}, {}
  for _, id in ipairs(ids) do
    if held_limits[id] == nil then
      held_limits[id] = false
      fresh[#fresh + 1] = id
    end
  end
  if #fresh == 0 or redis.call('EXISTS', KEYS.holds) == 0 then
    return
  end
  for i, text in ipairs(redis.call('HMGET', KEYS.holds, unpack(fresh))) do
    if text then
      held_limits[fresh[i]] = limits_in(text)
      for _, limit in ipairs(held_limits[fresh[i]]) do
        limits[#limits + 1] = limit
      end
    end
  end
  read_limits(limits)
end

-- Change the state of each limit that tasks hold; a limit that several of them hold changes as often.
local function change_held(ids, change)
  if not limits_used then
    return
  end
  read_holds(ids)
  for _, id in ipairs(ids) do
    for _, limit in ipairs(held_limits[id] or {}) do
      change(touch_limit(limit))
    end
  end
end

-- Give back the starts of active tasks that never began; `leased_at` has the times of their leases.
-- Their slots are released separately. What a limit has regained since the oldest of the leases may
-- have been used by others: without these leases it could have been full meanwhile. So no window has
-- more starts than the rate and the burst.
local function refund_starts(ids, leased_at)
  if not limits_used then
    return
  end
  read_holds(ids)
  local counts, oldest, order = {}, {}, {}
  for _, id in ipairs(ids) do
    for _, limit in ipairs(held_limits[id] or {}) do
      if not counts[limit] then
        order[#order + 1] = limit
      end
      counts[limit] = (counts[limit] or 0) + 1
      oldest[limit] = math.min(oldest[limit] or math.huge, leased_at[id])
    end
  end
  for _, limit in ipairs(order) do
    local state = touch_limit(limit)
    local regained = math.max(0, limits_now - oldest[limit])
    local amount = math.max(0, counts[limit] * state.rule.interval - regained)
    state.tat = math.max(0, math.floor(state.tat - amount))
  end
end

-- Subtract active tasks from the counts of their limits.
local function release_slots(ids)
  change_held(ids, function(state)
    state.use = math.max(0, state.use - 1)
  end)
end

-- Subtract pending tasks from the counts of their limits.
local function release_ready(ids)
  change_held(ids, function(state)
    state.ready = math.max(0, state.ready - 1)
  end)
end

-- Let no task that holds the limit start before `moment`.
local function close_limit(limit, moment)
  local state = touch_limit(limit)
  state.closed = math.max(state.closed, moment)
end

-- Return the first of the limits for which a ready task cannot start now; nil without one.
local function unstartable_limit(limits)
  for _, limit in ipairs(limits) do
    local state = limit_states[limit]
    local rule = state.rule
    local early = rule.interval > 0 and state.tat - rule.tolerance > limits_now
    if state.use >= rule.slots or state.closed > limits_now or early then
      return limit
    end
  end
end

-- Count a ready task as started.
local function take_limits(limits)
  for _, limit in ipairs(limits) do
    local state = touch_limit(limit)
    local interval = state.rule.interval
    state.use, state.ready = state.use + 1, math.max(0, state.ready - 1)
    if interval > 0 then
      state.tat = math.ceil(math.max(state.tat, limits_now - (known.late[limit] or 0)) + interval)
    end
  end
end

-- Let a task hold the limits in its message instead of those that it held. The caller has removed
-- it from all counts, or it was dead.
local function hold_limits_of(id, message)
  if not limits_used then
    return
  end
  local limits = limits_of_message(message)
  if #limits > 0 then
    redis.call('HSET', KEYS.holds, id, table.concat(limits, '\0'))
    read_limits(limits)
  else
    redis.call('HDEL', KEYS.holds, id)
  end
  held_limits[id] = #limits > 0 and limits
end

-- Delete what tasks hold, since they end or become limited. The caller has removed them from all
-- counts.
local function drop_holds(ids)
  if limits_used and #ids > 0 and redis.call('EXISTS', KEYS.holds) == 1 then
    redis.call('HDEL', KEYS.holds, unpack(ids))
  end
  for _, id in ipairs(limits_used and ids or {}) do
    held_limits[id] = false
  end
end
