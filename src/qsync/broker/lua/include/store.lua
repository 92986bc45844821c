-- store: put new tasks into the queue. Shared by enqueue and tick.

-- What `args` holds from position `first` on, three values a task: id, message, and options, which
-- are empty or msgpack [due, fairness key, lock, window us].
local function read_tasks(args, first)
  local tasks = {}
  for i = 1, (#args - first + 1) / 3 do
    local task = { id = args[first + 3 * i - 3], message = args[first + 3 * i - 2] }
    local packed = args[first + 3 * i - 1]
    task.due, task.key, task.lock, task.window = '', '', '', 0
    if packed ~= '' then
      task.due, task.key, task.lock, task.window = unpack(cmsgpack.unpack(packed))
    end
    tasks[i] = task
  end
  return tasks
end

-- Returns held_by(lock), the id that has it now or false, and take(task).
local function lock_book(unique_key, now, tasks)
  local names, index = {}, {}
  for _, task in ipairs(tasks) do
    if task.lock ~= '' then
      names[#names + 1] = '=' .. task.lock
      index[task.lock] = #names
    end
  end
  local held = #names > 0 and redis.call('HMGET', unique_key, unpack(names)) or {}
  local taken, fields = {}, {}
  local function held_by(lock)
    return taken[lock] or lock_holder(unique_key, now, lock, held[index[lock]])
  end
  local function take(task)
    local ends = task.window > 0 and now + task.window or 0
    local at = #fields
    taken[task.lock] = task.id
    fields[at + 1], fields[at + 2], fields[at + 3], fields[at + 4] =
      lock_fields(task.lock, ends, task.id)
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

-- `k` names the keys; `args` and `first` are as for read_tasks.
-- Returns a flat list, two values a task: outcome and the id of the holder.
local function store_tasks(k, args, first, now, head)
  local stamped = head .. struct.pack('>I8', now)
  local tasks, ids = read_tasks(args, first), {}
  if #tasks == 0 then
    return {}
  end
  for i, task in ipairs(tasks) do
    ids[i] = task.id
  end
  local stored = redis.call('HMGET', k.tasks, unpack(ids))
  local next_tag, save_tags = tagger(k.meta, k.fairness)
  local held_by, take, locks = lock_book(k.unique, now, tasks)
  local bodies, pending, scheduled, keys = {}, {}, {}, {}
  local here, replies, bytes = {}, {}, 0
  for i, task in ipairs(tasks) do
    local id, outcome, holder = task.id, 'created', task.id
    local old = stored[i] and string.sub(stored[i], #stamped + 1) or here[id]
    local held = not old and task.lock ~= '' and held_by(task.lock)
    if old then
      outcome = old == task.message and 'created' or 'exists'
    elseif held then
      outcome, holder = 'duplicate', held
    else
      here[id] = task.message
      bytes = bytes + #stamped + #task.message
      bodies[#bodies + 1] = id
      bodies[#bodies + 1] = stamped .. task.message
      if task.lock ~= '' then
        take(task)
      end
      if task.key ~= '' then
        keys[#keys + 1] = id
        keys[#keys + 1] = task.key
      end
      local due = due_time(now, task.due)
      if due > now then
        scheduled[#scheduled + 1] = whole(due)
        scheduled[#scheduled + 1] = id
      else
        pending[#pending + 1] = tag_text(next_tag(task.key))
        pending[#pending + 1] = id
      end
    end
    replies[2 * i - 1] = outcome
    replies[2 * i] = holder
  end
  if #bodies == 0 then
    return replies
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
  return replies
end
