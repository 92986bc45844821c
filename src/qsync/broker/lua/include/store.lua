-- store: put new tasks into the queue. Shared by enqueue and tick.

-- `args` holds, from position `first` on, three values a task: id, message, and options, which are
-- empty or msgpack [due, fairness key, lock, window us]. Returns the ids, and the options of those
-- that have some.
local function read_tasks(args, first)
  local ids, options = {}, {}
  for i = 1, (#args - first + 1) / 3 do
    ids[i] = args[first + 3 * i - 3]
    local packed = args[first + 3 * i - 1]
    if packed ~= '' then
      options[i] = cmsgpack.unpack(packed)
    end
  end
  return ids, options
end

-- Returns held_by(lock), the id that has it now or false; take(lock, window, id); and the fields
-- to store for what was taken. Without options there is no lock to ask for.
local function lock_book(unique_key, now, options)
  if next(options) == nil then
    return nil, nil, {}
  end
  local names, index = {}, {}
  for _, option in pairs(options) do
    local lock = option[3]
    if lock ~= '' and not index[lock] then
      names[#names + 1] = '=' .. lock
      index[lock] = #names
    end
  end
  local held = #names > 0 and redis.call('HMGET', unique_key, unpack(names)) or {}
  local taken, fields = {}, {}
  local function held_by(lock)
    return taken[lock] or lock_holder(unique_key, now, lock, held[index[lock]])
  end
  local function take(lock, window, id)
    local at = #fields
    taken[lock] = id
    fields[at + 1], fields[at + 2], fields[at + 3], fields[at + 4] =
      lock_fields(lock, window > 0 and now + window or 0, id)
  end
  return held_by, take, fields
end

-- The time at which a task is due: an empty text is now, `+us` so long after now, `us` that time.
local function due_time(now, text)
  if text == '' then
    return now
  end
  local at = tonumber(text)
  return string.sub(text, 1, 1) == '+' and now + at or at
end

local no_options = { '', '', '', 0 }

-- `k` names the keys; `args` and `first` are as for read_tasks, `ids` and `options` what it returned;
-- `virtual` is the virtual time as meta holds it.
-- Returns a flat list, two values a task: outcome and the id of the holder; and how many were put
-- into the queue.
local function store_tasks(k, args, first, now, head, ids, options, virtual)
  if #ids == 0 then
    return {}, 0
  end
  local stamped = head .. struct.pack('>I8', now)
  local stored = redis.call('HMGET', k.tasks, unpack(ids))
  local next_tag, save_tags = tagger(k.meta, k.fairness, read_tag(virtual))
  local held_by, take, locks = lock_book(k.unique, now, options)
  local bodies, pending, scheduled, keys = {}, {}, {}, {}
  local here, replies, bytes = {}, {}, 0
  for i, id in ipairs(ids) do
    local message, option = args[first + 3 * i - 2], options[i] or no_options
    local outcome, holder, key, lock = 'created', id, option[2], option[3]
    local old = stored[i] and string.sub(stored[i], #stamped + 1) or here[id]
    local held = not old and lock ~= '' and held_by(lock)
    if old then
      outcome = old == message and 'created' or 'exists'
    elseif held then
      outcome, holder = 'duplicate', held
    else
      here[id] = message
      bytes = bytes + #stamped + #message
      bodies[#bodies + 1] = id
      bodies[#bodies + 1] = stamped .. message
      if lock ~= '' then
        take(lock, option[4], id)
      end
      if key ~= '' then
        keys[#keys + 1] = id
        keys[#keys + 1] = key
      end
      local due = due_time(now, option[1])
      if due > now then
        scheduled[#scheduled + 1] = whole(due)
        scheduled[#scheduled + 1] = id
      else
        pending[#pending + 1] = next_tag(key)
        pending[#pending + 1] = id
      end
    end
    replies[2 * i - 1] = outcome
    replies[2 * i] = holder
  end
  if #bodies == 0 then
    return replies, 0
  end
  redis.call('HSET', k.tasks, unpack(bodies))
  if #locks > 0 then
    redis.call('HSET', k.unique, unpack(locks))
  end
  if #keys > 0 then
    redis.call('HSET', k.keys, unpack(keys))
  end
  put_due(k.scheduled, k.wake, scheduled)
  if #pending > 0 then
    redis.call('ZADD', k.pending, unpack(pending))
    save_tags()
    wake(k.wake)
  end
  count(k.stats, now, 'enqueued', #bodies / 2)
  count(k.stats, now, 'bytes', bytes)
  return replies, #bodies / 2
end
