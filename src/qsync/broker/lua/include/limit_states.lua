-- limit_states: read and write the rules of limits, and how much of each limit is in use. A rule is
-- `<concurrency> <rate> <per us> <burst>`, where 0 means none. The record of an operator's rule
-- also states when it was set and by whom. A state is
-- `<in use> <ready> <tat us> <closed until us>`. In a state, `in use` counts the active tasks that
-- hold the limit, and `ready` counts the pending tasks that hold it. Rates use GCRA; `tat` is its
-- theoretical arrival time. While tasks wait for the limit, a zero byte and the first of these
-- tasks follow, in the format of include/waiter_entries.lua. If `waiters` lists further tasks, ` +`
-- precedes the zero byte. States are read once per script, changed here, and written by
-- save_limits. Functions that run for each task use numeric loops, because `ipairs` costs a
-- function call for each element.

local limits_now, limits_used = 0, false
local limit_states, touched_limits, held_limits = {}, {}, {}
local type_limits

-- Return the limits of paused types as a set. A task of a paused type waits for the limit `@<type>`,
-- which has no slots. No task holds this limit, and the name of no other limit begins with `@`. The
-- field `@` of `limit_rules` holds these types, separated by zero bytes, and the field `@<type>`
-- holds the note of a pause.
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

-- Return the limit of the type in a stored message if that type is paused.
local function paused_limit(message)
  if next(paused_limits()) == nil then
    return nil
  end
  local limit = type_limit(message)
  return limit and type_limits[limit] and limit or nil
end

-- Prepare the functions for limits, with the time `now`. `needed` is true if this call adds tasks
-- with limits, or starts successors, which hold no limits yet. If it is false and the queue has no
-- keys of limits, this function costs one command, and all other functions do nothing. Fails before
-- the first write if a later write would fail.
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
    'EXISTS', 'HMGET', 'HSET', 'HDEL', 'ZADD', 'ZREM', 'ZMSCORE', 'ZRANGE', 'ZRANGEBYLEX',
    'ZRANGEBYSCORE',
  })
end

local fixed_rules = {
  unlimited = { slots = math.huge, interval = 0, tolerance = 0, lateness = 0 },
  no_slots = { slots = 0, interval = 0, tolerance = 0, lateness = 0 },
}

-- Caches of parsed rules and of parsed counts, by their text, since many limits share a rule, and
-- many states without a time have the same text. `texts` has the texts of such states. `by_field`
-- has stored rules by field of limit_rules. `by_name` has the rules of names, which many limits
-- share: the operator's, or else the program's. `all_fields` tells whether all fields were read,
-- and `own_rules` whether a single limit may have a rule of its own. `late` maps limits to the
-- delay, in us, with which this script opens them.
local known = {
  rules = {}, counts = { [false] = { 0, 0, 0, 0 } }, texts = {}, by_field = {}, by_name = {}, late = {},
  all_fields = false, own_rules = true,
}

-- Return a rule as a table; false when it is not valid. `lateness` is the longest time by which a
-- task can start after its limit has opened without delaying later starts. The lateness is less
-- than the time between two starts, so at most rate + burst tasks start in any window.
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

-- Return the state that is stored in `text`, under a rule. The text `items` has the first waiters,
-- from the byte `from` on; `more` is set if there are others. `stored` is 2 if the limit has a
-- marker in `waiters`, otherwise 1 or false. The value of `tat` is capped at that of a limit that
-- has just used its whole burst, since it may have been computed with an earlier, lower rate.
-- `is_capped` is set in a capped state, and `is_type` in the state of a limit `@<type>`; `waits` is
-- set once the script knows whether tasks wait for such a limit.
local function new_limit_state(text, rule)
  local stop = text and #text > 7 and string.find(text, '\0', 1, true)
  local numbers = stop and string.sub(text, 1, stop - 1) or text
  local counts = known.counts[numbers]
  if not counts then
    local use, ready, tat, closed, more = string.match(numbers, '^(%d+) (%d+) (%d+) (%d+)( ?%+?)$')
    counts = {
      tonumber(use or 0), tonumber(ready or 0), tonumber(tat or 0), tonumber(closed or 0),
      more == ' +',
    }
    if counts[3] + counts[4] == 0 then
      known.counts[numbers] = counts
    end
  end
  local state = {
    use = counts[1], ready = counts[2], tat = counts[3], closed = counts[4], rule = rule,
    items = stop and text or '', from = stop and stop + 1 or 1, stored = text and (stop and 2 or 1),
    touched = false,
  }
  if stop and counts[5] then
    state.more = true
  end
  if state.tat > limits_now and rule.interval > 0 then
    state.tat = math.min(state.tat, math.ceil(limits_now + rule.interval + rule.tolerance))
    state.is_capped = state.tat < counts[3] or nil
  end
  return state
end

-- Read all rules with one scan, if the store returns them in one reply, as it does for a small
-- hash.
local function scan_rules()
  local part = redis.call('HSCAN', KEYS.limit_rules, '0', 'COUNT', 10)
  if part[1] ~= '0' then
    return
  end
  known.all_fields, known.own_rules = true, false
  for i = 1, #part[2], 2 do
    known.by_field[part[2][i]] = part[2][i + 1]
    known.own_rules = known.own_rules or string.find(part[2][i], '^!.*:') ~= nil
  end
end

-- Read the rules in these fields of limit_rules.
local function read_rule_fields(fields)
  if #fields > 0 and not known.all_fields then
    for i, text in ipairs(redis.call('HMGET', KEYS.limit_rules, unpack(fields))) do
      known.by_field[fields[i]] = text
    end
  end
end

-- Read the rules of limits. An operator's rule for the limit has precedence, then an operator's
-- rule for its name, then the program's rule. The name of the limit `customer:42` is `customer`.
-- Returns one rule per limit.
local function read_rules(limits)
  if #limits > 8 and not known.all_fields then
    scan_rules()
  end
  local fields, names, rules, by_field, by_name = {}, {}, {}, known.by_field, known.by_name
  local fresh, own_rules, name, prefix = {}, known.own_rules, nil, nil
  for i = 1, #limits do
    local limit_name = limits[i]
    if own_rules then
      fields[i] = '!' .. limit_name
    end
    if not prefix or string.sub(limit_name, 1, #prefix) ~= prefix then
      name = string.match(limit_name, '^[^:]*')
      prefix = name .. ':'
      if by_name[name] == nil then
        by_name[name] = fixed_rules.unlimited
        fresh[#fresh + 1] = name
      end
    end
    names[i] = name
  end
  for _, new_name in ipairs(fresh) do
    fields[#fields + 1] = table.concat({ '!', new_name })
    fields[#fields + 1] = new_name
  end
  read_rule_fields(fields)
  for _, new_name in ipairs(fresh) do
    local own, program = by_field[table.concat({ '!', new_name })], by_field[new_name]
    by_name[new_name] = own and read_rule(own) or program and read_rule(program)
      or fixed_rules.unlimited
  end
  for i = 1, #limits do
    local own = own_rules and by_field[fields[i]]
    rules[i] = own and read_rule(own) or by_name[names[i]]
  end
  return rules
end

-- Read the states of limits that were not read before; limits of types must not be among them.
local function read_limits(limits)
  local fresh, count = {}, 0
  for i = 1, #limits do
    local limit = limits[i]
    if limit_states[limit] == nil then
      limit_states[limit] = false
      count = count + 1
      fresh[count] = limit
    end
  end
  for first = 1, count, 500 do
    local part = count <= 500 and fresh or { unpack(fresh, first, math.min(first + 499, count)) }
    local states, rules = redis.call('HMGET', KEYS.limits, unpack(part)), read_rules(part)
    for i = 1, #part do
      limit_states[part[i]] = new_limit_state(states[i], rules[i])
    end
  end
end

-- Return the state of a limit, which save_limits writes.
local function touch_limit(limit)
  local state = limit_states[limit]
  if not state then
    if is_type_limit(limit) then
      state = new_limit_state(false, paused_limits()[limit] and fixed_rules.no_slots or fixed_rules.unlimited)
      state.is_type, limit_states[limit] = true, state
    else
      read_limits({ limit })
      state = limit_states[limit]
    end
  end
  if not state.touched then
    state.touched = true
    touched_limits[#touched_limits + 1] = limit
  end
  return state
end

-- Return the time from which the rate lets one more task start, in addition to the ready tasks; 0
-- means at any time.
local function limit_opens_at(state)
  local rule = state.rule
  if rule.interval == 0 then
    return state.closed
  end
  local due = math.max(state.tat, limits_now) + state.ready * rule.interval - rule.tolerance
  return math.max(state.closed, due)
end

-- Touch the limits whose stored `tat` is later than their rule allows, so that save_limits corrects
-- both `tat` and the time at which they open. Returns whether there are such limits.
local function correct_starts(limits)
  local any = false
  read_limits(limits)
  for _, limit in ipairs(limits) do
    if limit_states[limit].is_capped then
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

-- Read the limits that tasks hold, for ids that were not read before, and the states of these
-- limits.
local function read_holds(ids)
  local fresh, count = {}, 0
  for i = 1, #ids do
    local id = ids[i]
    if held_limits[id] == nil then
      held_limits[id] = false
      count = count + 1
      fresh[count] = id
    end
  end
  if count == 0 or redis.call('EXISTS', KEYS.holds) == 0 then
    return
  end
  local limits, total = {}, 0
  local texts = redis.call('HMGET', KEYS.holds, unpack(fresh))
  for i = 1, count do
    local text = texts[i]
    if text then
      local held = limits_in(text)
      held_limits[fresh[i]] = held
      for place = 1, #held do
        total = total + 1
        limits[total] = held[place]
      end
    end
  end
  read_limits(limits)
end

-- Subtract tasks from one count of each limit that they hold: `use` or `ready`.
local function subtract_held(ids, field)
  if not limits_used then
    return
  end
  read_holds(ids)
  for i = 1, #ids do
    local held = held_limits[ids[i]]
    for place = 1, held and #held or 0 do
      local state = touch_limit(held[place])
      state[field] = math.max(0, state[field] - 1)
    end
  end
end

-- Refund the starts of active tasks that never began to the rates of their limits; `leased_at` has
-- the times of the leases. The tasks' slots are released separately. A limit may have regained
-- starts since the oldest of these leases. These starts are not refunded, because other tasks may
-- have used them, and because the limit could have been full since then without the leases. So no
-- window has more starts than the rate and the burst allow.
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
  subtract_held(ids, 'use')
end

-- Subtract pending tasks from the counts of their limits.
local function release_ready(ids)
  subtract_held(ids, 'ready')
end

-- Close a limit, so that no task that holds it starts before `moment`.
local function close_limit(limit, moment)
  local state = touch_limit(limit)
  state.closed = math.max(state.closed, moment)
end

-- Return the first of the limits that keeps a ready task from starting now; nil if none does.
local function unstartable_limit(limits)
  for i = 1, #limits do
    local state = limit_states[limits[i]]
    local rule = state.rule
    local early = rule.interval > 0 and state.tat - rule.tolerance > limits_now
    if state.use >= rule.slots or state.closed > limits_now or early then
      return limits[i]
    end
  end
end

-- Count a ready task as started.
local function take_limits(limits)
  for i = 1, #limits do
    local state = touch_limit(limits[i])
    local interval = state.rule.interval
    state.use = state.use + 1
    if state.ready > 0 then
      state.ready = state.ready - 1
    end
    if interval > 0 then
      local late = known.late[limits[i]] or 0
      state.tat = math.ceil(math.max(state.tat, limits_now - late) + interval)
    end
  end
end

-- Replace the limits that a task holds with those in its message. The task must have been dead, or
-- the caller must have removed it from all counts.
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

-- Delete the lists of limits, in `holds`, of tasks that end or become limited. The caller must have
-- removed the tasks from all counts.
local function drop_holds(ids)
  if not limits_used or #ids == 0 then
    return
  end
  if redis.call('EXISTS', KEYS.holds) == 1 then
    redis.call('HDEL', KEYS.holds, unpack(ids))
  end
  for i = 1, #ids do
    held_limits[ids[i]] = false
  end
end
