-- priority_bands: implement strict priorities within a queue. The order tags of a priority form a
-- band, and the band of a higher priority lies below that of a lower one. Fair queueing works
-- within a band. Each band has a virtual time. The fields of `meta` for these times are `v` for the
-- normal priority and `virtual:<priority>` for the other priorities. A member represents a task in
-- `keys` and `fairness`. The member is the fairness key; if the priority is not normal, the byte
-- 255 and the digit of the priority precede the key. No fairness key begins with that byte, which
-- is not valid UTF-8.

local normal_priority, band_width, band_reach = 5, 2 ^ 41, 2 ^ 40

-- Return the member of a task.
local function member_of(priority, key)
  if priority == normal_priority then
    return key
  end
  return table.concat({ '\255', priority, key })
end

-- Return the priority and the fairness key of a member.
local function read_member(member)
  if string.byte(member, 1) == 255 then
    return parse_int(string.match(member, '^\255([1-9])'), normal_priority), string.sub(member, 3)
  end
  return normal_priority, member
end

-- Return the tag in the middle of a band, at which its virtual time starts.
local function band_middle(priority)
  return (normal_priority - priority) * band_width
end

-- Return the tag if it is in the band, else the nearest tag in the band.
local function into_band(tag, priority)
  local middle = band_middle(priority)
  return math.max(middle - band_reach + 1, math.min(tag, middle + band_reach - 1))
end

-- Return the priority whose band a tag is in.
local function priority_at(tag)
  local steps = math.floor(tag / band_width + 0.5)
  return math.max(1, math.min(normal_priority - steps, 9))
end

-- Return a tag read from a text or score; the middle of its band when it is not valid.
local function read_band_tag(text, priority)
  local tag, middle = tonumber(text or ''), band_middle(priority)
  return tag and tag > middle and into_band(tag, priority) or middle
end

-- Return the virtual time of a priority. Each virtual time is read once per script.
local band_times = {}
local function band_time(priority)
  if not band_times[priority] then
    local stored = priority == normal_priority and redis.call('HGET', KEYS.meta, 'v')
      or redis.call('HGET', KEYS.meta, table.concat({ 'virtual:', priority }))
    band_times[priority] = read_band_tag(stored, priority)
  end
  return band_times[priority]
end

-- Return the lowest tag of a priority in a set; nothing when the set has no task of that priority.
local function lowest_of_band(set_key, priority)
  local middle = band_middle(priority)
  local first = redis.call(
    'ZRANGEBYSCORE', set_key, middle - band_reach, middle + band_reach, 'WITHSCORES', 'LIMIT', 0, 1
  )
  return tonumber(first[2] or '')
end
