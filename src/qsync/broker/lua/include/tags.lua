-- tags: start-time fair queueing (Goyal, Vin and Cheng, 1996).
-- A task's tag is max(V, F[key]) + 1/weight, where F[key] is the last tag given to its fairness
-- key and V the largest tag fetched so far. Pending is ordered by tag.

local function tag_text(tag)
  return string.format('%.17g', tag)
end

-- Returns next_tag(key), and save() which stores the last tags given.
local function tagger(meta_key, fairness_key)
  local virtual = tonumber(redis.call('HGET', meta_key, 'v') or '0')
  local last, step = {}, {}
  local function next_tag(key)
    local tag = last[key]
    if tag == nil then
      tag = math.max(virtual, tonumber(redis.call('ZSCORE', fairness_key, key) or '0'))
      step[key] = 1
      if key ~= '' then
        local weight = tonumber(redis.call('HGET', meta_key, 'weight:' .. key) or '1')
        if weight and weight > 0 then
          step[key] = 1 / weight
        end
      end
    end
    tag = tag + step[key]
    last[key] = tag
    return tag
  end
  local function save()
    for key, tag in pairs(last) do
      redis.call('ZADD', fairness_key, tag_text(tag), key)
    end
  end
  return next_tag, save
end

-- Put ids at the head of pending, in this order: below the lowest tag there is.
local function to_head(pending_key, meta_key, ids)
  if #ids == 0 then
    return
  end
  local lowest = redis.call('ZRANGE', pending_key, 0, 0, 'WITHSCORES')[2]
    or redis.call('HGET', meta_key, 'v') or '0'
  local base = tonumber(lowest) - #ids - 1
  local args = {}
  for i, id in ipairs(ids) do
    args[2 * i - 1] = tag_text(base + i)
    args[2 * i] = id
  end
  redis.call('ZADD', pending_key, unpack(args))
end

-- Put ids at their fair place in pending.
local function to_pending(pending_key, meta_key, fairness_key, keys_key, ids)
  if #ids == 0 then
    return
  end
  local next_tag, save = tagger(meta_key, fairness_key)
  local keys = {}
  if redis.call('EXISTS', keys_key) == 1 then
    keys = redis.call('HMGET', keys_key, unpack(ids))
  end
  local args = {}
  for i, id in ipairs(ids) do
    args[2 * i - 1] = tag_text(next_tag(keys[i] or ''))
    args[2 * i] = id
  end
  redis.call('ZADD', pending_key, unpack(args))
  save()
end
