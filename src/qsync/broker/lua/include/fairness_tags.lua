-- fairness_tags: implement start-time fair queueing (Goyal, Vin and Cheng, 1996).
-- A task's tag is max(V, F[key]) + 1/weight, where F[key] is the last tag given to its fairness
-- key, and V is the largest tag fetched so far. `pending` is ordered by tag. Scripts pass tags to
-- the store as numbers, which keeps all 17 digits.

-- From this value on, adding 1 to a double may have no effect. qsync never assigns such tags.
local tag_limit = 2 ^ 53

-- Return a tag read from a text or score; 0 when it is not valid.
local function read_tag(text)
  local tag = tonumber(text or '')
  return tag and tag > 0 and tag < tag_limit and tag or 0
end

local function virtual_time()
  return read_tag(redis.call('HGET', KEYS.meta, 'v'))
end

-- Return the step between two tags of this fairness key: 1/weight, for weights of 0.001 to 1000.
local function tag_step(key)
  -- flow:
  local _
  _, key = read_member(key)
  -- end flow
  local weight = key ~= '' and tonumber(redis.call('HGET', KEYS.meta, 'weight:' .. key) or '')
  if weight and weight > 0 then
    return 1 / math.max(0.001, math.min(weight, 1000))
  end
  return 1
end

-- Return two functions: next_tag(key), and save(), which stores the last tag of each key. `virtual`
-- is the virtual time.
local function tagger(virtual)
  local last, step = {}, {}
  local function next_tag(key)
    local tag = last[key]
    if tag == nil then
      -- flow:
      local priority = read_member(key)
      local before = read_band_tag(redis.call('ZSCORE', KEYS.fairness, key), priority)
      tag = math.max(band_time(priority), before)
      -- plain:
      tag = math.max(virtual, read_tag(redis.call('ZSCORE', KEYS.fairness, key)))
      -- end flow
      step[key] = tag_step(key)
    end
    tag = tag + step[key]
    -- flow:
    tag = into_band(tag, (read_member(key)))
    -- end flow
    last[key] = tag
    return tag
  end
  local function save()
    for key, tag in pairs(last) do
      redis.call('ZADD', KEYS.fairness, tag, key)
    end
  end
  return next_tag, save
end

-- flow:
-- Return the members of ids; a member is empty if the task has normal priority and no fairness key.
local function members_of(ids)
  local found = redis.call('EXISTS', KEYS.keys) == 1 and redis.call('HMGET', KEYS.keys, unpack(ids))
  local members = {}
  for i = 1, #ids do
    members[i] = found and found[i] or ''
  end
  return members
end

-- Return the lowest tag of a priority in `pending` and `limited`, or the priority's virtual time if
-- no task has the priority.
local function head_of_band(priority)
  local pending = lowest_of_band(KEYS.pending, priority)
  local limited = limits_used and lowest_of_band(KEYS.limited, priority)
  if pending and limited then
    return math.min(pending, limited)
  end
  return pending or limited or band_time(priority)
end

-- Put ids at the head of their bands of `pending`, in this order, with tags below the lowest one.
local function to_head(ids)
  if #ids == 0 then
    return
  end
  local bands, args = {}, {}
  for i, member in ipairs(members_of(ids)) do
    local priority = read_member(member)
    bands[priority] = bands[priority] or {}
    table.insert(bands[priority], ids[i])
  end
  for priority = 9, 1, -1 do
    local band = bands[priority] or {}
    local base = #band > 0 and head_of_band(priority) - #band - 1
    for i, id in ipairs(band) do
      args[#args + 1] = into_band(base + i, priority)
      args[#args + 1] = id
    end
  end
  add_pending(args)
end
-- plain:
-- Put ids at the head of `pending`, in this order, with tags below the lowest one.
local function to_head(ids)
  if #ids == 0 then
    return
  end
  local lowest = redis.call('ZRANGE', KEYS.pending, 0, 0, 'WITHSCORES')[2]
  local base = (tonumber(lowest or '') or virtual_time()) - #ids - 1
  local args = {}
  for i, id in ipairs(ids) do
    args[2 * i - 1] = base + i
    args[2 * i] = id
  end
  redis.call('ZADD', KEYS.pending, unpack(args))
end
-- end flow

-- Put ids into `pending` with the next tags of their fairness keys.
local function to_pending(ids)
  if #ids == 0 then
    return
  end
  local next_tag, save = tagger(virtual_time())
  local keys = {}
  if redis.call('EXISTS', KEYS.keys) == 1 then
    keys = redis.call('HMGET', KEYS.keys, unpack(ids))
  end
  local args = {}
  for i, id in ipairs(ids) do
    args[2 * i - 1] = next_tag(keys[i] or '')
    args[2 * i] = id
  end
  -- flow:
  add_pending(args)
  -- plain:
  redis.call('ZADD', KEYS.pending, unpack(args))
  -- end flow
  save()
end
