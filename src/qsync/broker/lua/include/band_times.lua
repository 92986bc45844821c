-- band_times: change the virtual times of the priority bands in a fetch.

-- Return the field of `meta` that holds the virtual time of a priority.
local function virtual_field(priority)
  return priority == normal_priority and 'v' or table.concat({ 'virtual:', priority })
end

-- Distance from the middle of its band above which a virtual time restarts once no task waits.
local far_time = 2 ^ 39

-- Return some of the tags of these pending ids, which are in order. The last tag of each band is
-- always included.
local function last_tags(ids)
  local last = redis.call('ZSCORE', KEYS.pending, ids[#ids])
  local first = #ids > 1 and redis.call('ZSCORE', KEYS.pending, ids[1]) or last
  if first and last and priority_at(tonumber(first)) == priority_at(tonumber(last)) then
    return { last }
  end
  return redis.call('ZMSCORE', KEYS.pending, unpack(ids))
end

-- Advance the virtual time of each band to its last tag in `tags`, the ordered tags of leased
-- tasks.
local function advance_bands(tags)
  local last, fields = {}, {}
  for _, text in ipairs(tags) do
    local tag = tonumber(text or '')
    if tag then
      last[priority_at(tag)] = tag
    end
  end
  for priority, tag in pairs(last) do
    if tag > band_time(priority) then
      band_times[priority] = into_band(tag, priority)
      fields[#fields + 1] = virtual_field(priority)
      fields[#fields + 1] = string.format('%.17g', band_times[priority])
    end
  end
  if #fields > 0 then
    redis.call('HSET', KEYS.meta, unpack(fields))
  end
end

-- Forget fairness keys whose last tag is not above the virtual time of its band, in the normal band
-- and in the bands that this fetch has read.
local function forget_passed(limit)
  band_time(normal_priority)
  for priority, time in pairs(band_times) do
    local lowest = band_middle(priority) - band_reach
    local passed =
      redis.pcall('ZRANGEBYSCORE', KEYS.fairness, lowest, time, 'LIMIT', 0, limit)
    if #passed > 0 then
      redis.pcall('ZREM', KEYS.fairness, unpack(passed))
    end
  end
end

-- Restart virtual times that are far from the middle of their band. The caller must have checked
-- that `pending` is empty. Tasks that wait for a limit keep their tags, so nothing changes while
-- any task waits for a limit.
local function restart_bands()
  if redis.call('EXISTS', KEYS.limited) == 1 then
    return
  end
  for priority, time in pairs(band_times) do
    if time - band_middle(priority) > far_time then
      redis.call('HDEL', KEYS.meta, virtual_field(priority))
    end
  end
end
