-- recent: ids that callers chose. For a while after an enqueue no other task of its id is taken, also
-- when the first has left the queue: a caller that had no answer may repeat the call.

-- For each place in a batch whose task asks for it, the time for which its id is remembered.
local function remembered_times(tasks)
  local times = {}
  for i, option in pairs(tasks.options) do
    if (option[5] or 0) > 0 then
      times[i] = option[5]
    end
  end
  return times
end

-- Those of these places whose id was enqueued lately, as a set.
local function recent_places(recent_key, now, tasks, times)
  local ids, places, recent = {}, {}, {}
  for i in pairs(times) do
    ids[#ids + 1] = tasks.ids[i]
    places[#ids] = i
  end
  if #ids > 0 then
    for at, ends in ipairs(redis.call('ZMSCORE', recent_key, unpack(ids))) do
      recent[places[at]] = ends and tonumber(ends) > now
    end
  end
  return recent
end

-- Remember the ids at these places, but for tasks that were not taken: `others` names those.
local function remember(recent_key, now, tasks, times, others)
  for at = 1, #others, 3 do
    times[others[at]] = nil
  end
  local args = {}
  for i, time in pairs(times) do
    args[#args + 1] = whole(now + time)
    args[#args + 1] = tasks.ids[i]
  end
  if #args > 0 then
    redis.call('ZADD', recent_key, 'GT', unpack(args))
  end
end
