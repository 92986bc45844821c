-- limit_waiters: decide which tasks begin to wait for a limit, and which waiters become pending.
-- include/waiter_entries.lua describes the format of `waiters`.

-- `left` is the number of waiters that the script may still move. At most `left_of_types` of them
-- may wait for the limit of a type. `opened` is the number of waiters that the script has moved
-- into `pending`. A limit with more waiters gets an opening that is due now. The number for types
-- is smaller, because a million tasks may be waiting when a type is resumed, and many scripts in a
-- row then move the maximum.
local moves = { left = 500, left_of_types = 150, opened = 0 }

-- Put tasks into `limited`. `args` alternates tags and ids, `limits` has the limit for which each
-- task waits, and `held` maps ids to the limits that the tasks will hold when they run.
local function put_limited(args, limits, held)
  local entries, shared = {}, shared_tags(args)
  for i = 1, #limits do
    local id = args[2 * i]
    local short = waiter_items.new(args[2 * i - 1], held[id] and #held[id] > 1 and '\0' or '')
    local item = short .. id
    add_waiter(limits[i], item, shared[id] and item or short, entries)
  end
  redis.call('ZADD', KEYS.limited, unpack(args))
  if #entries > 0 then
    redis.call('ZADD', KEYS.waiters, unpack(entries))
  end
end

-- Return up to `most` of the first entries under the limit of a type.
local function waiters_of_type(limit, most)
  local from, to = waiter_items.range(limit)
  return redis.call('ZRANGEBYLEX', KEYS.waiters, from, to, 'LIMIT', 0, most)
end

-- Return whether a task waits for the limit. For a type, the answer is cached until a waiter is
-- moved.
local function has_waiter(limit, state)
  if state.is_type and state.waits == nil then
    state.waits = #waiters_of_type(limit, 1) > 0
  end
  return state.waits or state.from <= #state.items
end

-- Return the first limit, other than `but`, that is not open; nil when all are open.
local function closed_limit(limits, but)
  for _, limit in ipairs(limits) do
    if limit ~= but and not is_limit_open(touch_limit(limit)) then
      return limit
    end
  end
end

-- Add a task that becomes pending to the counts of its limits.
local function add_ready(limits)
  for i = 1, #limits do
    local state = touch_limit(limits[i])
    state.ready = state.ready + 1
  end
end

-- Return the limit for which a task that becomes pending has to wait: a limit that is not open, or
-- for which other tasks wait. Return nil if there is no such limit.
local function refusing_limit(limits)
  for i = 1, #limits do
    local state = touch_limit(limits[i])
    if not is_limit_open(state) or has_waiter(limits[i], state) then
      return limits[i]
    end
  end
end

-- Write fields of a hash of limits; `args` alternates fields and values. The store keeps a hash of
-- up to 512 short values as a list, which every lookup scans. Therefore a long value is written
-- first, which turns the list into a hash table until the key is deleted. The long value's field
-- has an empty name, which no limit and no task has.
local function write_fields(hash_key, args)
  if #args > 32 then
    redis.call('HSET', hash_key, '', string.rep('x', 65), unpack(args))
    redis.call('HDEL', hash_key, '')
  elseif #args > 0 then
    redis.call('HSET', hash_key, unpack(args))
  end
end

-- Put tasks into `pending`, or into `limited` if one of their limits refuses them. `args`
-- alternates tags and ids. `new_holds` maps ids to the limits of tasks that hold none yet, and
-- `refused` has the limits of paused types. Returns the number of tasks that went into `pending`.
local function admit_tasks(args, new_holds, refused)
  local pending, limited, refusing, parked, holds, held = {}, {}, {}, {}, {}, {}
  for i = 1, #args, 2 do
    local tag, id = args[i], args[i + 1]
    local limits = new_holds and new_holds[id] or held_limits[id]
    local limit = refused and refused[id] or limits and refusing_limit(limits)
    local into = limit and limited or pending
    into[#into + 1] = tag
    into[#into + 1] = id
    if limit then
      touch_limit(limit).waits = true
      parked[#parked + 1], refusing[#parked + 1], held[id] = id, limit, limits
    elseif limits then
      add_ready(limits)
      if new_holds and new_holds[id] then
        holds[#holds + 1] = id
        holds[#holds + 1] = table.concat(limits, '\0')
      end
    end
  end
  if #limited > 0 then
    put_limited(limited, refusing, held)
    drop_holds(parked)
  end
  write_fields(KEYS.holds, holds)
  if #pending > 0 then
    redis.call('ZADD', KEYS.pending, unpack(pending))
  end
  return #pending / 2
end

-- Return a table from the ids of new tasks of paused types to the limits of these types; nil if
-- there are none. `bodies` alternates ids and messages.
local function refused_by_type(bodies)
  if next(paused_limits()) == nil then
    return nil
  end
  local refused = {}
  for i = 1, #bodies, 2 do
    refused[bodies[i]] = paused_limit(bodies[i + 1])
  end
  return refused
end

-- Put new tasks into `pending` or `limited`. `new_holds` maps ids to the limits of tasks that have
-- limits, and `bodies` alternates ids and messages. Returns the number of tasks that went into
-- `pending`.
local function admit_new_tasks(args, new_holds, bodies)
  if not limits_used then
    redis.call('ZADD', KEYS.pending, unpack(args))
    return #args / 2
  end
  local limits = {}
  for _, list in pairs(new_holds) do
    for _, limit in ipairs(list) do
      limits[#limits + 1] = limit
    end
  end
  read_limits(limits)
  return admit_tasks(args, new_holds, refused_by_type(bodies))
end

-- Put tasks into `pending` or `limited`; `args` alternates tags and ids. The limits of the tasks
-- must already be in `holds`.
local function add_pending(args)
  if not limits_used then
    redis.call('ZADD', KEYS.pending, unpack(args))
    return #args / 2
  end
  local ids = {}
  for i = 2, #args, 2 do
    ids[#ids + 1] = args[i]
  end
  read_holds(ids)
  return admit_tasks(args)
end

-- Move pending tasks into `limited`, each under the limit that `refused` has for its id.
local function park_pending(ids, refused)
  local limited, limits = {}, {}
  for i, tag in ipairs(redis.call('ZMSCORE', KEYS.pending, unpack(ids))) do
    local id = ids[i]
    limited[2 * i - 1], limited[2 * i], limits[i] = tag, id, refused[id]
  end
  release_ready(ids)
  redis.call('ZREM', KEYS.pending, unpack(ids))
  put_limited(limited, limits, held_limits)
  drop_holds(ids)
end

-- Remove the items of tasks that leave `limited`; the caller removes the tasks from it afterwards.
local function remove_waiters(ids)
  if not limits_used or #ids == 0 then
    return
  end
  local tags = redis.call('ZMSCORE', KEYS.limited, unpack(ids))
  for i, message in ipairs(redis.call('HMGET', KEYS.tasks, unpack(ids))) do
    local limits = tags[i] and limits_of_message(message) or {}
    local short = tags[i] and waiter_items.new(tags[i], #limits > 1 and '\0' or '')
    local limit_of_type = tags[i] and type_limit(message)
    local entries = limit_of_type and { table.concat({ limit_of_type, '\0', short, ids[i] }) } or {}
    if limit_of_type and limit_states[limit_of_type] then
      limit_states[limit_of_type].waits = nil
    end
    for _, limit in ipairs(limits) do
      if not remove_item(limit, touch_limit(limit), ids[i]) then
        entries[#entries + 1] = table.concat({ limit, '\0', short })
        entries[#entries + 1] = table.concat({ limit, '\0', short, ids[i] })
      end
    end
    if #entries > 0 then
      redis.call('ZREM', KEYS.waiters, unpack(entries))
    end
  end
end

-- Append the first waiters for a type's limit to `limits`, `ids` and `entries`. Returns their
-- number.
local function first_of_type(limit, room, limits, ids, entries)
  local state, count = limit_states[limit], #limits
  room = state.rule.slots > 0 and state.waits ~= false and math.min(room, moves.left_of_types) or 0
  local found = room > 0 and waiters_of_type(limit, room) or {}
  for i = 1, #found do
    limits[count + i], entries[count + i] = limit, found[i]
    ids[count + i] = waiter_items.id(string.sub(found[i], #limit + 2))
  end
  moves.left_of_types = moves.left_of_types - #found
  if room > 0 then
    state.waits = #found > 0
  end
  return #found
end

-- Return the limit and the id of the first waiter for each touched limit that is open. A start does
-- not close the limit of a type, so several of its waiters are returned, with their entries. The
-- search begins at place `from` of the touched limits. Also return whether a waiter has several
-- limits or waits for the limit of a type, and the place at which the next search begins.
local function first_waiters(from)
  local limits, ids, entries, count, most = {}, {}, {}, 0, math.min(moves.left, 50)
  local place, last, any_several = from, #touched_limits, false
  while place <= last and count < most do
    local limit = touched_limits[place]
    local state = limit_states[limit]
    local items, first = state.items, state.from
    if state.is_type then
      count = count + first_of_type(limit, most - count, limits, ids, entries)
    elseif first <= #items and state.use + state.ready < state.rule.slots
      and limit_opens_at(state) <= limits_now then
      local size, _, _, _, _, _, _, _, _, ninth = string.byte(items, first, first + 9)
      count = count + 1
      limits[count], ids[count] = limit, string.sub(items, first + (ninth == 0 and 10 or 9), first + size)
      any_several = any_several or ninth == 0
    end
    place = place + 1
  end
  return limits, ids, entries, any_several or next(entries) ~= nil, place
end

-- Move the waiters that first_waiters returned into `pending`, or under another of their limits
-- that is not open. An item without a limited task is removed. Messages are read only if one of the
-- waiters may have to wait for another limit. Returns whether one of the limits may let more
-- waiters start.
local function move_waiters(limits, ids, entries, any_several)
  any_several = any_several or next(paused_limits()) ~= nil
  local tags = redis.call('ZMSCORE', KEYS.limited, unpack(ids))
  local messages = any_several and redis.call('HMGET', KEYS.tasks, unpack(ids)) or {}
  local pending, opened, holds, gone, count, held_count, again = {}, {}, {}, {}, 0, 0, false
  for i = 1, #limits do
    local limit, id, tag, message = limits[i], ids[i], tags[i], messages[i]
    local state = limit_states[limit]
    local held = message and limits_of_message(message)
    local other = tag and message and (paused_limit(message) or closed_limit(held, limit))
    if not tag or not any_several or is_limit_open(state) then
      moves.left = moves.left - 1
      local item
      if state.is_type then
        state.waits, gone[#gone + 1] = nil, entries[i]
        item = string.sub(entries[i], #limit + 2)
      elseif any_several then
        item = remove_item(limit, state, id)
      else
        state.from, state.last_tag = state.from + string.byte(state.items, state.from) + 1, nil
        if state.more and state.from > #state.items then
          refill(limit, state)
        end
      end
      if other then
        local moved = {}
        if item then
          add_waiter(other, item, item, moved)
        end
        if #moved > 0 then
          redis.call('ZADD', KEYS.waiters, unpack(moved))
        end
      elseif tag then
        count = count + 1
        opened[count], pending[2 * count - 1], pending[2 * count] = id, tag, id
        if held then
          add_ready(held)
        elseif not state.is_type then
          state.ready = state.ready + 1
        end
        local text = held and table.concat(held, '\0') or not state.is_type and limit or ''
        if text ~= '' then
          held_count = held_count + 2
          holds[held_count - 1], holds[held_count] = id, text
        end
        held_limits[id] = nil -- read_holds reads it again
      end
    end
    again = again or state.use + state.ready < state.rule.slots
  end
  if #gone > 0 then
    redis.call('ZREM', KEYS.waiters, unpack(gone))
  end
  if #opened > 0 then
    moves.opened = moves.opened + #opened
    redis.call('ZREM', KEYS.limited, unpack(opened))
    write_fields(KEYS.holds, holds)
    redis.call('ZADD', KEYS.pending, unpack(pending))
  end
  return again
end

-- Move waiters for touched limits into `pending` while these limits are open. Returns how many
-- waiters moved.
local function open_waiters()
  if not limits_used then
    return 0
  end
  local before, from = moves.opened, 1
  while moves.left > 0 do
    local limits, ids, entries, any_several, next_place = first_waiters(from)
    if #ids == 0 then
      break
    end
    if not move_waiters(limits, ids, entries, any_several) then
      from = next_place
    end
  end
  return moves.opened - before
end

-- Return a state in its stored form.
local function state_text(state)
  local has_times = state.tat + state.closed > 0
  local place = state.use * 2 ^ 26 + state.ready
  local text = not has_times and known.texts[place]
  if not text then
    text = string.format('%.0f %.0f %.0f %.0f', state.use, state.ready, state.tat, state.closed)
    if not has_times then
      known.texts[place] = text
    end
  end
  if state.from > #state.items then
    return text
  end
  return text .. (state.more and ' +\0' or '\0') .. string.sub(state.items, state.from)
end

-- Store openings, which alternate times and limits. Returns whether one of them is before all
-- stored openings.
function moves.add_openings(openings)
  local before = tonumber(redis.call('ZRANGE', KEYS.openings, 0, 0, 'WITHSCORES')[2] or '')
  local first = math.huge
  for i = 1, #openings, 2 do
    first = math.min(first, tonumber(openings[i]))
  end
  redis.call('ZADD', KEYS.openings, unpack(openings))
  return first < (before or math.huge)
end

-- Write the states of touched limits. For each limit with waiters, also write the time at which it
-- opens, unless it opens when a task releases it. Returns whether a limit opens before all others.
local function save_limits()
  local stored, gone, openings, shut, unmarked, count = {}, {}, {}, {}, {}, 0
  local any_openings = redis.call('EXISTS', KEYS.openings) == 1
  for i = 1, #touched_limits do
    local limit = touched_limits[i]
    local state = limit_states[limit]
    local held = state.use + state.ready
    if held > 0 or state.from <= #state.items or math.max(state.tat, state.closed) > limits_now then
      count = count + 2
      stored[count - 1], stored[count] = limit, state_text(state)
    elseif state.stored then
      gone[#gone + 1] = limit
    end
    if state.stored == 2 and state.from > #state.items then
      unmarked[#unmarked + 1] = table.concat({ limit, '\0' })
    end
    if held < state.rule.slots and has_waiter(limit, state) then
      openings[#openings + 1] = to_text(math.ceil(limit_opens_at(state)))
      openings[#openings + 1] = limit
    elseif any_openings then
      shut[#shut + 1] = limit
    end
  end
  write_fields(KEYS.limits, stored)
  if #gone > 0 then
    redis.call('HDEL', KEYS.limits, unpack(gone))
  end
  if #unmarked > 0 then
    redis.call('ZREM', KEYS.waiters, unpack(unmarked))
  end
  if #shut > 0 then
    redis.call('ZREM', KEYS.openings, unpack(shut))
  end
  return #openings > 0 and moves.add_openings(openings)
end

-- Open the limits whose opening is due, up to `limit` of them. Returns `moved`, or true if tasks
-- became pending, and `more`, or true if more limits are due.
local function open_due_limits(limit, moved, more)
  if not limits_used then
    return moved, more
  end
  local due = redis.call(
    'ZRANGEBYSCORE', KEYS.openings, '-inf', to_text(limits_now), 'WITHSCORES', 'LIMIT', 0, limit
  )
  for i = 1, #due, 2 do
    local state = touch_limit(due[i])
    known.late[due[i]] = math.min(limits_now - tonumber(due[i + 1]), state.rule.lateness)
  end
  local opened = #touched_limits > 0 and open_waiters() > 0
  return moved or opened, more or #due == 2 * limit
end

-- Move waiters and write states, at the end of a script. Returns whether to wake a server, and
-- whether tasks became pending. A server is also woken for a limit that opens before all others, so
-- that an idle server learns that time from its fetch.
local function settle_limits()
  if not limits_used or #touched_limits == 0 then
    return false, false
  end
  local opened = open_waiters() > 0
  return save_limits() or opened, opened
end
