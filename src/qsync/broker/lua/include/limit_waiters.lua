-- limit_waiters: tasks that wait for a limit. `waiters` has one entry per limited task, under the
-- first of its limits that refused it: limit, a zero byte, order tag, id. All scores are 0, so entries
-- are ordered by bytes, and the first one of a limit is the first to start. A task of a paused type is
-- under `@<type>`, before its own limits.

-- Number of waiters that the script may still move, the same for limits of types, and number that
-- it moved into pending. A limit with more waiters gets an opening that is due now. Limits of types
-- move fewer: after a resume there may be a million waiters.
local moves_left, type_moves_left, opened_waiters = 500, 150, 0

-- Return the entry of a waiter. Its tag takes 8 bytes that are ordered like the number: a positive one
-- gets the sign bit, and all bits of a negative one are inverted.
local function waiter_entry(limit_name, tag, id)
  tag = tonumber(tag)
  local tag_bytes = struct.pack('>d', tag < 0 and tag or -tag)
  if tag < 0 then
    tag_bytes = string.gsub(tag_bytes, '.', function(byte)
      return string.char(255 - string.byte(byte))
    end)
  end
  return limit_name .. '\0' .. tag_bytes .. id
end

-- Append the entry of a task that begins to wait to arguments of ZADD.
local function add_waiter(entries, limit, tag, id)
  entries[#entries + 1] = 0
  entries[#entries + 1] = waiter_entry(limit, tag, id)
  touch_limit(limit).waits = true
end

-- Return the first entries under a limit, up to `most`.
local function waiters_of(limit_name, most)
  return redis.call(
    'ZRANGEBYLEX', KEYS.waiters, '[' .. limit_name .. '\0', '(' .. limit_name .. '\1',
    'LIMIT', 0, most
  )
end

-- Return the first entry under a limit; nil when no task waits there. No other entry sorts between
-- the limit and its first entry.
local function first_waiter(limit_name)
  local head = limit_name .. '\0'
  local entry = redis.call('ZRANGEBYLEX', KEYS.waiters, '[' .. head, '+', 'LIMIT', 0, 1)[1]
  if entry and string.find(entry, head, 1, true) == 1 then
    return entry
  end
end

-- Return whether a task waits for the limit. The answer is kept until a waiter is moved.
local function has_waiter(limit, state)
  if state.waits == nil then
    state.waits = first_waiter(limit) ~= nil
  end
  return state.waits
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

-- Return the limit for which a task that becomes pending has to wait: one that is not open, or for
-- which other tasks wait; nil if there is none.
local function refusing_limit(limits)
  for i = 1, #limits do
    local state = touch_limit(limits[i])
    if not is_limit_open(state) or has_waiter(limits[i], state) then
      return limits[i]
    end
  end
end

-- Write fields of a hash of limits; `args` holds field and value in turn. The store keeps a hash of up
-- to 512 short values as a list, which every lookup scans: a long value under the empty name, which
-- neither a limit nor a task has, first turns it into a hash table until the key is deleted.
local function write_fields(hash_key, args)
  if #args > 32 then
    redis.call('HSET', hash_key, '', string.rep('x', 65), unpack(args))
    redis.call('HDEL', hash_key, '')
  elseif #args > 0 then
    redis.call('HSET', hash_key, unpack(args))
  end
end

-- Put tasks into pending, or into limited where one of their limits refuses them. `args` holds tag
-- and id in turn; `new_holds` the limits of tasks that hold none yet, and `refused` the limits of
-- their types if these are paused, by id. Returns the number of tasks in pending.
local function admit_tasks(args, new_holds, refused)
  local pending, limited, waiters, parked, holds = {}, {}, {}, {}, {}
  for i = 1, #args, 2 do
    local tag, id = args[i], args[i + 1]
    local limits = new_holds and new_holds[id] or held_limits[id]
    local limit = refused and refused[id] or limits and refusing_limit(limits)
    local into = limit and limited or pending
    into[#into + 1] = tag
    into[#into + 1] = id
    if limit then
      add_waiter(waiters, limit, tag, id)
      parked[#parked + 1] = id
    elseif limits then
      add_ready(limits)
      if new_holds and new_holds[id] then
        holds[#holds + 1] = id
        holds[#holds + 1] = table.concat(limits, '\0')
      end
    end
  end
  if #limited > 0 then
    redis.call('ZADD', KEYS.limited, unpack(limited))
    redis.call('ZADD', KEYS.waiters, unpack(waiters))
    drop_holds(parked)
  end
  write_fields(KEYS.holds, holds)
  if #pending > 0 then
    redis.call('ZADD', KEYS.pending, unpack(pending))
  end
  return #pending / 2
end

-- Return the limits of the types of new tasks that are paused, by id; `bodies` holds id and message in
-- turn. Nil without any.
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

-- Put new tasks into pending or limited; `new_holds` has the limits of those with limits, by id, and
-- `bodies` id and message in turn. Returns the number of tasks in pending.
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

-- Put tasks that hold limits, or none, into pending or limited; `args` holds tag and id in turn.
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

-- Move pending tasks into limited, each under the limit that `refused` has for its id.
local function park_pending(ids, refused)
  local limited, waiters = {}, {}
  for i, tag in ipairs(redis.call('ZMSCORE', KEYS.pending, unpack(ids))) do
    local id = ids[i]
    limited[2 * i - 1], limited[2 * i] = tag, id
    add_waiter(waiters, refused[id], tag, id)
  end
  release_ready(ids)
  redis.call('ZREM', KEYS.pending, unpack(ids))
  redis.call('ZADD', KEYS.limited, unpack(limited))
  redis.call('ZADD', KEYS.waiters, unpack(waiters))
  drop_holds(ids)
end

-- Remove the entries of tasks that leave `limited`; the caller removes the tasks from it
-- afterwards.
local function remove_waiters(ids)
  if not limits_used or #ids == 0 then
    return
  end
  local tags = redis.call('ZMSCORE', KEYS.limited, unpack(ids))
  local entries = {}
  for i, message in ipairs(redis.call('HMGET', KEYS.tasks, unpack(ids))) do
    for _, limit in ipairs(tags[i] and limits_of_message(message) or {}) do
      entries[#entries + 1] = waiter_entry(limit, tags[i], ids[i])
      touch_limit(limit).waits = nil
    end
    local limit = tags[i] and type_limit(message)
    if limit then
      entries[#entries + 1] = waiter_entry(limit, tags[i], ids[i])
    end
    if limit and limit_states[limit] then
      limit_states[limit].waits = nil
    end
  end
  if #entries > 0 then
    redis.call('ZREM', KEYS.waiters, unpack(entries))
  end
end

-- Return limit, id and entry of the first waiter of each touched limit that is open; for the limit
-- of a type, which no start closes, those of several waiters. The search begins at place `from` of
-- the touched limits. Also return the place at which the next search begins.
local function first_waiters(from)
  local limits, ids, entries, count, most = {}, {}, {}, 0, math.min(moves_left, 50)
  local place, last = from, #touched_limits
  while place <= last and count < most do
    local limit = touched_limits[place]
    local state = limit_states[limit]
    if state.waits ~= false and state.use + state.ready < state.rule.slots
      and limit_opens_at(state) <= limits_now then
      local before = count
      if state.is_type then
        local room = math.min(most - count, type_moves_left)
        for _, entry in ipairs(room > 0 and waiters_of(limit, room) or {}) do
          count = count + 1
          limits[count], entries[count] = limit, entry
        end
        type_moves_left = type_moves_left - (count - before)
        if room > 0 then
          state.waits = count > before
        end
      else
        local entry = first_waiter(limit)
        state.waits = entry ~= nil
        if entry then
          count = count + 1
          limits[count], entries[count] = limit, entry
        end
      end
      for i = before + 1, count do
        ids[i] = string.sub(entries[i], #limit + 10)
      end
    end
    place = place + 1
  end
  return limits, ids, entries, place
end

-- Move the waiters that first_waiters returned: into pending, or under another of their limits that
-- is not open. An entry without a limited task is removed. Returns whether one of the limits may have
-- room for more.
local function move_waiters(limits, ids, entries)
  local tags = redis.call('ZMSCORE', KEYS.limited, unpack(ids))
  local messages = redis.call('HMGET', KEYS.tasks, unpack(ids))
  local pending, opened, holds, gone, moved, count, held_count = {}, {}, {}, {}, {}, 0, 0
  local any_paused, again, shared, before = next(paused_limits()) ~= nil, false, false, nil
  for i = 1, #limits do
    local limit, id, tag, message = limits[i], ids[i], tags[i], messages[i]
    local state = limit_states[limit]
    local alone = message and has_only_limit(message, limit)
    local held = not alone and limits_of_message(message)
    local other = tag and (
      any_paused and paused_limit(message) or held and closed_limit(held, limit)
    )
    shared = shared or limit == before or not alone
    if not tag or not shared or is_limit_open(state) then
      moves_left = moves_left - 1
      state.waits = nil
      gone[#gone + 1] = entries[i]
      if other then
        add_waiter(moved, other, tag, id)
      elseif tag then
        count = count + 1
        opened[count], pending[2 * count - 1], pending[2 * count] = id, tag, id
        if alone then
          state.ready = state.ready + 1
        else
          add_ready(held)
        end
        if alone or #held > 0 then
          held_count = held_count + 2
          holds[held_count - 1], holds[held_count] = id, alone and limit or table.concat(held, '\0')
          held_limits[id] = held or { limit }
        end
      end
    end
    again = again or state.use + state.ready < state.rule.slots
    before = limit
  end
  if #gone > 0 then
    redis.call('ZREM', KEYS.waiters, unpack(gone))
  end
  if #moved > 0 then
    redis.call('ZADD', KEYS.waiters, unpack(moved))
  end
  if #opened > 0 then
    opened_waiters = opened_waiters + #opened
    redis.call('ZREM', KEYS.limited, unpack(opened))
    write_fields(KEYS.holds, holds)
    redis.call('ZADD', KEYS.pending, unpack(pending))
  end
  return again
end

-- Move waiters of touched limits into pending while their limits are open. Returns how many.
local function open_waiters()
  if not limits_used or redis.call('EXISTS', KEYS.waiters) == 0 then
    return 0
  end
  local before, from = opened_waiters, 1
  while moves_left > 0 do
    local limits, ids, entries, next_place = first_waiters(from)
    if #ids == 0 then
      break
    end
    if not move_waiters(limits, ids, entries) then
      from = next_place
    end
  end
  return opened_waiters - before
end

-- Return a state as it is stored.
local function state_text(state)
  if state.tat + state.closed > 0 then
    return string.format('%.0f %.0f %.0f %.0f', state.use, state.ready, state.tat, state.closed)
  end
  local place = state.use * 2 ^ 26 + state.ready
  local text = known.texts[place]
  if not text then
    text = string.format('%.0f %.0f 0 0', state.use, state.ready)
    known.texts[place] = text
  end
  return text
end

-- Write the states of touched limits, and the time at which each limit with waiters opens, unless a
-- task that leaves will open it.
local function save_limits()
  local stored, gone, openings, shut, count = {}, {}, {}, {}, 0
  local any_waiters = redis.call('EXISTS', KEYS.waiters) == 1
  local any_openings = redis.call('EXISTS', KEYS.openings) == 1
  for i = 1, #touched_limits do
    local limit = touched_limits[i]
    local state = limit_states[limit]
    local held = state.use + state.ready
    if held > 0 or math.max(state.tat, state.closed) > limits_now then
      count = count + 2
      stored[count - 1], stored[count] = limit, state_text(state)
    elseif state.stored then
      gone[#gone + 1] = limit
    end
    if any_waiters and held < state.rule.slots and has_waiter(limit, state) then
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
  if #shut > 0 then
    redis.call('ZREM', KEYS.openings, unpack(shut))
  end
  if #openings > 0 then
    redis.call('ZADD', KEYS.openings, unpack(openings))
  end
end

-- Open the limits whose time has come, up to `limit` of them. Returns whether tasks became pending,
-- and whether more limits are due.
local function open_due_limits(limit)
  if not limits_used then
    return false, false
  end
  local due = redis.call(
    'ZRANGEBYSCORE', KEYS.openings, '-inf', to_text(limits_now), 'WITHSCORES', 'LIMIT', 0, limit
  )
  for i = 1, #due, 2 do
    local state = touch_limit(due[i])
    known.late[due[i]] = math.min(limits_now - tonumber(due[i + 1]), state.rule.lateness)
  end
  return #touched_limits > 0 and open_waiters() > 0, #due == 2 * limit
end

-- Move waiters and write states, at the end of a script. Returns whether tasks became pending.
local function settle_limits()
  if not limits_used or #touched_limits == 0 then
    return false
  end
  local opened = open_waiters()
  save_limits()
  return opened > 0
end
