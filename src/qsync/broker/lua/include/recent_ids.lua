-- recent_ids: remember ids that callers chose. For a time after an enqueue, the task's id is
-- refused, even if the task has left the queue. So a caller that received no reply can safely
-- repeat the call.

-- Return how long the id of each task is remembered, by the task's place in the batch. Tasks whose
-- id is not remembered are left out.
local function remembered_times(tasks)
  local times = {}
  for i, option in pairs(tasks.options) do
    if (option[5] or 0) > 0 then
      times[i] = option[5]
    end
  end
  return times
end

-- Return the set of places in the batch at which the task's id was enqueued recently.
local function recent_places(now, tasks, times)
  local ids, places, recent = {}, {}, {}
  for i in pairs(times) do
    ids[#ids + 1] = tasks.ids[i]
    places[#ids] = i
  end
  if #ids > 0 then
    for at, ends in ipairs(redis.call('ZMSCORE', KEYS.recent, unpack(ids))) do
      recent[places[at]] = ends and tonumber(ends) > now
    end
  end
  return recent
end

-- Remember the ids of the tasks in a call, for the time that `times` has for each task's place. The
-- refused tasks, which `others` lists, are left out.
local function remember(now, tasks, times, others)
  for at = 1, #others, 3 do
    -- flow:
    if others[at + 1] ~= 'replaced' then
      times[others[at]] = nil
    end
    -- plain:
    times[others[at]] = nil
    -- end flow
  end
  local args = {}
  for i, time in pairs(times) do
    args[#args + 1] = to_text(now + time)
    args[#args + 1] = tasks.ids[i]
  end
  if #args > 0 then
    redis.call('ZADD', KEYS.recent, 'GT', unpack(args))
  end
end
