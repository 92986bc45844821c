-- insert_tasks: put new tasks into the queue, for enqueues and for the ticks of schedules.

-- Read tasks from `args`, from position `first` on. With a stride of 2, each task has an id and a
-- message. With a stride of 3, it also has options, which are empty or msgpack [due, fairness key,
-- lock, window us, us for which the id is remembered].
-- Returns a table with ids, messages and options; a task without options has no entry in options.
local function read_tasks(args, first, stride)
  local tasks = { ids = {}, messages = {}, options = {} }
  local ids, messages = tasks.ids, tasks.messages
  for i = 1, (#args - first + 1) / stride do
    local at = first + stride * (i - 1)
    ids[i], messages[i] = args[at], args[at + 1]
    if stride == 3 and args[at + 2] ~= '' then
      tasks.options[i] = cmsgpack.unpack(args[at + 2])
    end
  end
  return tasks
end

-- Return two functions and a list. held_by(lock) returns the id that holds a lock, or false.
-- take(lock, window, id) takes the lock, and adds the fields to store to the list. If there are no
-- options, no task has a lock, and both functions are nil.
local function lock_book(now, options)
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
  local held = #names > 0 and redis.call('HMGET', KEYS.unique, unpack(names)) or {}
  local taken, fields = {}, {}
  local function held_by(lock)
    return taken[lock] or lock_holder(now, lock, held[index[lock]])
  end
  local function take(lock, window, id)
    local at = #fields
    taken[lock] = id
    fields[at + 1], fields[at + 2], fields[at + 3], fields[at + 4] =
      lock_fields(lock, window > 0 and now + window or 0, id)
  end
  return held_by, take, fields
end

-- Return the time at which a task is due: '' means now, `+<us>` means a delay, and `<us>` means a
-- time.
local function due_time(now, text)
  if text == '' then
    return now
  end
  local at = tonumber(text)
  return string.sub(text, 1, 1) == '+' and now + at or at
end

-- flow:
-- Return whether a task uses flow control; the options of other tasks have five elements.
local function use_flow(options)
  for _, option in pairs(options) do
    if #option > 5 then
      return true
    end
  end
  return false
end

-- Return whether a task has limits.
local function have_limits(options)
  for _, option in pairs(options) do
    if option[6] and #option[6] > 0 then
      return true
    end
  end
  return false
end

-- end flow
local no_options = { '', '', '', 0 }

-- Store tasks. `tasks` is a table from read_tasks, and `virtual` is the virtual time as stored in
-- meta. `recent`, unless nil, is the set of the places of tasks whose id was enqueued recently.
-- Returns the number of tasks created, and a flat list of place, outcome and holder for each task
-- that was refused. A task that is already stored with the same message is neither counted nor
-- listed. A recent id of a task that replaces others gets the current holder of the lock, into which
-- the first call may have been merged.
local function insert_tasks(now, head, tasks, virtual, recent)
  local ids, options = tasks.ids, tasks.options
  local stamped = head .. struct.pack('>I8', now)
  local stored = redis.call('HMGET', KEYS.tasks, unpack(ids))
  local next_tag, save_tags = tagger(read_tag(virtual))
  local held_by, take, locks = lock_book(now, options)
  local bodies, pending, scheduled, keys = {}, {}, {}, {}
  -- flow:
  local new_holds, later_holds = {}, {}
  -- end flow
  local here, others, created, waiting, bytes = {}, {}, 0, 0, 0
  -- flow:
  local replacing = {}
  -- end flow
  for i, message in ipairs(tasks.messages) do
    local id, option = ids[i], options[i] or no_options
    local key, lock = option[2], option[3]
    -- flow:
    key = member_of(option[7] or normal_priority, key)
    -- end flow
    local old = stored[i] and string.sub(stored[i], #stamped + 1) or here[id]
    local repeated = not old and recent and recent[i]
    local holder = not old and not repeated and lock ~= '' and held_by(lock)
    -- flow:
    if repeated and option[8] == 'replace' then
      holder = held_by(lock)
    elseif holder and option[8] == 'replace' then
      replacing[#replacing + 1] = i
      replacing[#replacing + 1] = holder
      old, holder = message, false
    end
    -- end flow
    if old and old ~= message or holder or repeated then
      local at = #others
      local outcome = old and 'exists' or repeated and 'repeated' or 'duplicate'
      others[at + 1], others[at + 2], others[at + 3] = i, outcome, holder or id
    elseif not old then
      here[id] = message
      created = created + 1
      bytes = bytes + #message
      bodies[2 * created - 1], bodies[2 * created] = id, stamped .. message
      -- flow:
      local limits = option[6] and #option[6] > 0 and option[6]
      new_holds[id] = limits or nil
      -- end flow
      if lock ~= '' then
        take(lock, option[4], id)
      end
      if key ~= '' then
        keys[#keys + 1] = id
        keys[#keys + 1] = key
      end
      local due = due_time(now, option[1])
      if due > now then
        scheduled[#scheduled + 1] = due
        scheduled[#scheduled + 1] = id
        -- flow:
        if limits then
          later_holds[#later_holds + 1] = id
          later_holds[#later_holds + 1] = table.concat(limits, '\0')
        end
        -- end flow
      else
        waiting = waiting + 1
        pending[2 * waiting - 1], pending[2 * waiting] = next_tag(key), id
      end
    end
  end
  -- flow:
  if #replacing > 0 then
    check_replacements()
  end
  if created + #replacing > 0 then
    begin_limits(now, have_limits(options))
  end
  if created == 0 and #replacing > 0 then
    lift_schema()
  end
  -- end flow
  if created == 0 then
    -- flow:
    replace_holders(now, head, tasks, replacing, others)
    if settle_limits() then
      wake_server()
    end
    -- end flow
    return 0, others
  end
  if #keys > 0 then
    check_hash(KEYS.keys)
  end
  if #scheduled > 0 then
    check_set(KEYS.scheduled)
    check_rights(KEYS.scheduled, { 'ZRANGE' })
  end
  check_rights(KEYS.tasks, { 'HSET' })
  -- flow:
  make_room(now, tasks, bodies, created, replacing, others)
  -- end flow
  -- The other keys are known to be hashes, so no later write can fail once this one has succeeded.
  -- flow:
  if use_flow(options) then
    lift_schema()
  end
  if #later_holds > 0 then
    redis.call('HSET', KEYS.holds, unpack(later_holds))
  end
  local woken = waiting > 0 and admit_new_tasks(pending, new_holds, bodies) > 0
  -- plain:
  if waiting > 0 then
    redis.call('ZADD', KEYS.pending, unpack(pending))
  end
  -- end flow
  schedule_due(KEYS.scheduled, scheduled)
  redis.call('HSET', KEYS.tasks, unpack(bodies))
  if #locks > 0 then
    redis.call('HSET', KEYS.unique, unpack(locks))
  end
  if #keys > 0 then
    redis.call('HSET', KEYS.keys, unpack(keys))
  end
  -- flow:
  if waiting > 0 then
    save_tags()
  end
  if woken then
    wake_server()
  end
  -- plain:
  if waiting > 0 then
    save_tags()
    wake_server()
  end
  -- end flow
  count_pair(now, 'enqueued', created, 'bytes', bytes + created * #stamped)
  -- flow:
  replace_holders(now, head, tasks, replacing, others)
  if settle_limits() then
    wake_server()
  end
  publish_ended()
  -- end flow
  return created, others
end

-- Return a flat list with two values per task: outcome and the id of the holder.
local function replies_of(ids, others)
  local replies = {}
  for i, id in ipairs(ids) do
    replies[2 * i - 1], replies[2 * i] = 'created', id
  end
  for at = 1, #others, 3 do
    local place = others[at]
    if ids[place] then
      replies[2 * place - 1], replies[2 * place] = others[at + 1], others[at + 2]
    end
  end
  return replies
end
