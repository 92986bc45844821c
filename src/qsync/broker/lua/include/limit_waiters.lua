-- limit_waiters: tasks that wait for a limit. `waiters` has one entry per limited task, under the
-- first of its limits that refused it: limit, a zero byte, order tag, id. All scores are 0, so entries
-- are ordered by bytes, and the first one of a limit is the first to start. A task of a paused type is
-- under `@<type>`, before its own limits.

-- Maximum number of waiters that a script moves. A limit with more gets an opening that is due now.
local MOVES_MOST = 500

-- Maximum number of them under limits of types: there may be a million after a resume.
local TYPE_MOVES_MOST = 150

local moves_left, type_moves_left, opened_waiters = MOVES_MOST, TYPE_MOVES_MOST, 0

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

-- Return the first entry under a limit; nil when no task waits there. No entry is between the limit and
-- its first one.
local function first_waiter(limit_name)
  local entry = redis.call('ZRANGEBYLEX', KEYS.waiters, '(' .. limit_name, '+', 'LIMIT', 0, 1)[1]
  if entry and string.byte(entry, #limit_name + 1) == 0
    and string.find(entry, limit_name, 1, true) == 1 then
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
  for _, limit in ipairs(limits) do
    local state = touch_limit(limit)
    state.ready = state.ready + 1
  end
end

-- Return the limit for which a task that becomes pending has to wait: one that is not open, or for
-- which others wait; nil without one.
local function refusing_limit(limits)
  for _, limit in ipairs(limits) do
    local state = touch_limit(limit)
    if not is_limit_open(state) or has_waiter(limit, state) then
      return limit
    end
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
  if #holds > 0 then
    redis.call('HSET', KEYS.holds, unpack(holds))
  end
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

-- Remove the entries of limited tasks that leave; the caller removes them from `limited` after this.
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

-- Return limit and id of the first waiter of each touched limit that is open; of the limit of a type,
-- which nothing closes meanwhile, of several waiters.
local function first_waiters()
  local limits, ids, entries = {}, {}, {}
  for _, limit in ipairs(touched_limits) do
    local state, is_type = limit_states[limit], is_type_limit(limit)
    local room = math.min(moves_left, 50) - #ids
    if is_type then
      room = math.min(room, type_moves_left)
    end
    if room > 0 and state.waits ~= false and is_limit_open(state) then
      local before = #entries
      if is_type then
        for _, entry in ipairs(waiters_of(limit, room)) do
          entries[#entries + 1] = entry
        end
        type_moves_left = type_moves_left - (#entries - before)
      else
        entries[before + 1] = first_waiter(limit)
      end
      state.waits = #entries > before
      for at = before + 1, #entries do
        limits[at], ids[at] = limit, string.sub(entries[at], #limit + 10)
      end
    end
  end
  return limits, ids, entries
end

-- Move the waiters that first_waiters returned: into pending, or under another of their limits that
-- is not open. An entry without a limited task is removed.
local function move_waiters(limits, ids, entries)
  local tags = redis.call('ZMSCORE', KEYS.limited, unpack(ids))
  local messages = redis.call('HMGET', KEYS.tasks, unpack(ids))
  local pending, opened, holds, gone, moved = {}, {}, {}, {}, {}
  for i, limit in ipairs(limits) do
    local id, tag, message = ids[i], tags[i], messages[i]
    local held = message and has_only_limit(message, limit) and { limit }
      or limits_of_message(message)
    local other = tag and (paused_limit(message) or closed_limit(held, limit))
    if not tag or is_limit_open(limit_states[limit]) then
      moves_left = moves_left - 1
      limit_states[limit].waits = nil
      gone[#gone + 1] = entries[i]
      if other then
        add_waiter(moved, other, tag, id)
      elseif tag then
        opened[#opened + 1] = id
        pending[#pending + 1] = tag
        pending[#pending + 1] = id
        if #held > 0 then
          add_ready(held)
          holds[#holds + 1] = id
          holds[#holds + 1] = table.concat(held, '\0')
          held_limits[id] = held
        end
      end
    end
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
    if #holds > 0 then
      redis.call('HSET', KEYS.holds, unpack(holds))
    end
    redis.call('ZADD', KEYS.pending, unpack(pending))
  end
end

-- Move waiters of touched limits into pending while their limits are open. Returns how many.
local function open_waiters()
  if not limits_used or redis.call('EXISTS', KEYS.waiters) == 0 then
    return 0
  end
  local before = opened_waiters
  while moves_left > 0 do
    local limits, ids, entries = first_waiters()
    if #ids == 0 then
      break
    end
    move_waiters(limits, ids, entries)
  end
  return opened_waiters - before
end

-- Return a state as it is stored.
local function state_text(state)
  if state.tat + state.closed > 0 then
    return string.format('%.0f %.0f %.0f %.0f', state.use, state.ready, state.tat, state.closed)
  end
  local place = state.use * 2 ^ 26 + state.ready
  known.counts[place] = known.counts[place]
    or string.format('%.0f %.0f 0 0', state.use, state.ready)
  return known.counts[place]
end

-- Write the states of touched limits, and the time at which each limit with waiters opens, unless a
-- task that leaves will open it.
local function save_limits()
  local stored, gone, openings, shut = {}, {}, {}, {}
  local any_waiters = redis.call('EXISTS', KEYS.waiters) == 1
  for _, limit in ipairs(touched_limits) do
    local state = limit_states[limit]
    if state.use + state.ready > 0 or math.max(state.tat, state.closed) > limits_now then
      stored[#stored + 1] = limit
      stored[#stored + 1] = state_text(state)
    elseif state.stored then
      gone[#gone + 1] = limit
    end
    if any_waiters and not is_limit_full(state) and has_waiter(limit, state) then
      openings[#openings + 1] = to_text(math.ceil(limit_opens_at(state)))
      openings[#openings + 1] = limit
    else
      shut[#shut + 1] = limit
    end
  end
  if #stored > 0 then
    redis.call('HSET', KEYS.limits, unpack(stored))
  end
  if #gone > 0 then
    redis.call('HDEL', KEYS.limits, unpack(gone))
  end
  if #shut > 0 and redis.call('EXISTS', KEYS.openings) == 1 then
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
