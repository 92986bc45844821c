-- limit_counts: count the tasks that hold limits, for an audit and its repair.

-- Maximum number of tasks with limits to count; counting more would block the store for too long.
local COUNTED_MOST = 100000

-- Return, for each limit, how many active tasks and how many pending tasks hold it; nothing if more
-- than COUNTED_MOST tasks have limits.
local function count_holds()
  if redis.call('HLEN', KEYS.holds) > COUNTED_MOST then
    return
  end
  local held, counts = redis.call('HGETALL', KEYS.holds), {}
  for first = 1, #held, 1000 do
    local ids = {}
    for at = first, math.min(first + 999, #held), 2 do
      ids[#ids + 1] = held[at]
    end
    local active = redis.call('ZMSCORE', KEYS.active, unpack(ids))
    local pending = redis.call('ZMSCORE', KEYS.pending, unpack(ids))
    for i = 1, #ids do
      for _, limit in ipairs(limits_in(held[first + 2 * i - 1])) do
        counts[limit] = counts[limit] or { use = 0, ready = 0 }
        counts[limit].use = counts[limit].use + (active[i] and 1 or 0)
        counts[limit].ready = counts[limit].ready + (pending[i] and 1 or 0)
      end
    end
  end
  return counts
end
