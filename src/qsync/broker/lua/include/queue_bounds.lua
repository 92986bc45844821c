-- queue_bounds: apply the bounds on the number of waiting tasks and on the size of all messages.
-- The hash `meta` holds the bounds of the program (`bounds`) and those of an operator (`!bounds`,
-- which have precedence). While a bound needs it, `meta` also holds `bytes`, the size of all
-- messages.

-- flow:
-- Maximum number of tasks that one call drops to make room.
local DROPPED_MOST = 1000

-- Return the bounds in force: maximum waiting tasks, maximum bytes, and what to do when the queue
-- is full. A missing bound is infinite.
local function read_bounds(program, operator)
  local tasks, bytes, way = string.match(operator or program or '', '^(%d*) (%d*) (%l[%l_]*)')
  return tonumber(tasks) or math.huge, tonumber(bytes) or math.huge, way
end

-- Return the number of tasks that wait for a server, a limit, their due time or a retry.
local function count_waiting()
  local count = 0
  for _, set_key in ipairs({ KEYS.pending, KEYS.limited, KEYS.scheduled, KEYS.retry }) do
    count = count + redis.call('ZCARD', set_key)
  end
  return count
end

-- Return the size of all messages, read one by one; this takes about a second for a million tasks.
local function count_bytes()
  local bytes = 0
  for _, set_key in ipairs({
    KEYS.pending, KEYS.limited, KEYS.scheduled, KEYS.retry, KEYS.active, KEYS.completed, KEYS.dead,
  }) do
    for at = 0, redis.call('ZCARD', set_key) - 1, 1000 do
      for _, id in ipairs(redis.call('ZRANGE', set_key, at, at + 999)) do
        bytes = bytes + redis.call('HSTRLEN', KEYS.tasks, id)
      end
    end
  end
  return bytes
end

-- Fail the call with an error that names the bound, its value, the current count, and how many of
-- the first tasks fit. If several tasks in the call share the id of the first task that does not
-- fit, their messages show which of them it is.
local function refuse(bound, most, there, tasks, bodies, fits)
  local id, body, place = bodies[2 * fits + 1], bodies[2 * fits + 2], 0
  local ids, messages = tasks.ids, tasks.messages
  while ids[place + 1] ~= id or string.sub(body, -#messages[place + 1]) ~= messages[place + 1] do
    place = place + 1
  end
  error({ err = table.concat({ 'FULL', bound, to_text(most), to_text(there), to_text(place) }, ' ') })
end

-- Return the number of new tasks that fit if the queue has `tasks` tasks and `bytes` bytes.
local function fitting(bodies, created, tasks, bytes, most_tasks, most_bytes)
  for i = 1, created do
    tasks, bytes = tasks + 1, bytes + #bodies[2 * i]
    if tasks > most_tasks or bytes > most_bytes then
      return i - 1
    end
  end
  return created
end

-- Add the first ids of a state to `ids`, lowest priority first, until the counts in `over` reach 0.
-- The ids in the set `kept` are left out. Each priority has a band of order tags, 2^41 wide; sets
-- ordered by time have no bands.
local function first_of(set_key, over, kept, ids, banded)
  local below = '+inf'
  while #ids < DROPPED_MOST and over.tasks + over.bytes > 0 do
    local last = redis.call('ZRANGE', set_key, below, '-inf', 'BYSCORE', 'REV', 'LIMIT', 0, 1,
      'WITHSCORES')
    if #last == 0 then
      return
    end
    local band = math.floor(tonumber(last[2]) / 2 ^ 41 + 0.5)
    local from = banded and to_text(band * 2 ^ 41 - 2 ^ 40) or '-inf'
    local at, chunk, wanted = 0, nil, nil
    repeat
      wanted = math.min(DROPPED_MOST - #ids, math.max(over.tasks, over.bytes > 0 and 50 or 0))
      chunk = redis.call('ZRANGE', set_key, from, below, 'BYSCORE', 'LIMIT', at, wanted)
      for _, id in ipairs(chunk) do
        if over.tasks + over.bytes <= 0 then
          return
        end
        if not kept[id] then
          ids[#ids + 1] = id
          over.tasks = math.max(over.tasks - 1, 0)
          over.bytes = math.max(over.bytes - redis.call('HSTRLEN', KEYS.tasks, id), 0)
        end
      end
      at = at + #chunk
    until #chunk < wanted or #ids >= DROPPED_MOST or over.tasks + over.bytes <= 0
    below = table.concat({ '(', from })
    if not banded then
      return
    end
  end
end

-- Remove ids from the queue.
local function drop(now, set_key, ids)
  if #ids > 0 then
    if set_key == KEYS.limited then
      remove_waiters(ids)
    elseif set_key == KEYS.pending then
      release_ready(ids)
    end
    redis.call('ZREM', set_key, unpack(ids))
    forget_tasks(now, ids)
    forget_recent_ids(ids)
    note_ended(ids)
    count(now, 'dropped', #ids)
  end
end

-- Drop the oldest waiting tasks until `over.tasks` tasks and `over.bytes` bytes are gone; return
-- whether that was possible. If not enough tasks can be dropped, nothing is dropped. If the bound
-- was lowered and the queue is far above it, this call only has to make the queue smaller. The call
-- adds `created` tasks of `new_bytes` bytes. The ids in the set `kept` are not dropped.
local function drop_oldest(now, over, kept, created, new_bytes)
  check_hash(KEYS.tasks)
  check_rights(KEYS.tasks, { 'ZREM', 'HDEL', 'HMGET', 'EXISTS', 'HINCRBY' })
  local pending, limited, retry, scheduled = {}, {}, {}, {}
  local over_bytes = over.bytes
  first_of(KEYS.pending, over, kept, pending, true)
  first_of(KEYS.limited, over, kept, limited, true)
  first_of(KEYS.retry, over, kept, retry)
  first_of(KEYS.scheduled, over, kept, scheduled)
  if over.tasks + over.bytes > 0 then
    local dropped = #pending + #limited + #retry + #scheduled
    local fewer = over.tasks == 0 or dropped > created
    local smaller = over.bytes == 0 or over_bytes - over.bytes > new_bytes
    if dropped < DROPPED_MOST or not fewer or not smaller then
      return false
    end
  end
  drop(now, KEYS.pending, pending)
  drop(now, KEYS.limited, limited)
  drop(now, KEYS.retry, retry)
  drop(now, KEYS.scheduled, scheduled)
  return true
end

-- Return the set of the tasks that hold an id or lock of tasks in a call. The reply to the call
-- names these tasks, and those in `replacing` get a new payload, so the call does not drop them.
local function holders_of(replacing, others)
  local holders = {}
  for at = 2, #replacing, 2 do
    holders[replacing[at]] = true
  end
  for at = 3, #others, 3 do
    holders[others[at]] = true
  end
  return holders
end

-- Make sure that new tasks fit. Drop older tasks or fail the call before anything is written.
-- `bodies` alternates the ids and messages of the new tasks; `tasks` has all tasks of the call, as
-- read_tasks returns them. `replacing` and `others` have the call's other tasks, as in insert_tasks.
local function make_room(now, tasks, bodies, created, replacing, others)
  local known = redis.call('HMGET', KEYS.meta, 'bounds', '!bounds', 'bytes')
  local bytes, new_bytes = parse_int(known[3]), 0
  for i = 2, 2 * created, 2 do
    new_bytes = new_bytes + #bodies[i]
  end
  if known[1] or known[2] then
    local most_tasks, most_bytes, way = read_bounds(known[1], known[2])
    local waiting, there = count_waiting(), bytes or 0
    local over = {
      tasks = math.max(waiting + created - most_tasks, 0),
      bytes = math.max(there + new_bytes - most_bytes, 0),
    }
    if over.tasks + over.bytes > 0 then
      local bound = over.tasks > 0 and 'max_tasks' or 'max_bytes'
      local fits
      if way ~= 'drop_oldest' then
        fits = fitting(bodies, created, waiting, there, most_tasks, most_bytes)
      elseif created > most_tasks or new_bytes > most_bytes then
        fits = fitting(bodies, created, 0, 0, most_tasks, most_bytes)
      elseif not drop_oldest(now, over, holders_of(replacing, others), created, new_bytes) then
        fits = 0
      end
      if fits then
        local most = bound == 'max_tasks' and most_tasks or most_bytes
        refuse(bound, most, bound == 'max_tasks' and waiting or there, tasks, bodies, fits)
      end
    end
  end
  if bytes then
    add_bytes(new_bytes)
  end
end
-- end flow
