#!lua flags=no-writes
-- audit_limits: find limits whose counts are wrong, and limits with waiters that nothing would
-- open. In a part of the limited tasks and waiters, also find tasks without an entry and entries
-- without a task.
-- include: check_schema message_limits limit_states waiter_entries limit_counts
-- KEYS[1] limits    hash    limit -> its state
-- KEYS[2] limit_rules hash  name -> its rule
-- KEYS[3] holds     hash    id -> its limits, of unfinished tasks
-- KEYS[4] active    zset    ids by lease expiry
-- KEYS[5] pending   zset    ids by order tag
-- KEYS[6] limited   zset    ids by order tag
-- KEYS[7] waiters   zset    limit and id of each limited task
-- KEYS[8] openings  zset    limits by the time at which they open, us
-- KEYS[9] tasks     hash    id -> message
-- KEYS[10] meta     hash    schema
-- ARGV[1] first     int     rank of the first limited task and waiter to read; 0: check limits too
-- ARGV[2] count     int     number of tasks and of waiters to read, 1 to 500
-- REPLY[1] miscounted list  limits whose counts are wrong
-- REPLY[2] shut       list  open limits with waiters, but without a time at which they open
-- REPLY[3] unlisted   list  limited tasks that are not among the waiters of any limit
-- REPLY[4] strays     list  entries among the waiters that belong to no limited task
-- REPLY[5] more       flag  whether there are more limited tasks or waiters
-- REPLY[6] uncounted  flag  whether more tasks have limits than can be counted
-- REPLY[7] unmarked   flag  whether the queue has tasks with limits but not layout 2
-- returns the fields of REPLY
check_schema()
local first, last = tonumber(ARGV.first), tonumber(ARGV.first) + tonumber(ARGV.count) - 1

-- Return the limits whose stored counts differ from the number of tasks that hold them.
local function miscounted(counts)
  local found, limits = {}, {}
  for limit in pairs(counts) do
    limits[#limits + 1] = limit
  end
  for _, limit in ipairs(redis.call('HKEYS', KEYS.limits)) do
    if not counts[limit] then
      limits[#limits + 1] = limit
    end
  end
  read_limits(limits)
  for _, limit in ipairs(limits) do
    local state, count = limit_states[limit], counts[limit] or { use = 0, ready = 0 }
    if state.use ~= count.use or state.ready ~= count.ready then
      found[#found + 1] = limit
    end
  end
  return found
end

-- Return the limits that nothing would open, among the first 10,000 limits with waiters.
local function shut_limits()
  local found, from = {}, '-'
  for _ = 1, 10000 do
    local entry = redis.call('ZRANGEBYLEX', KEYS.waiters, from, '+', 'LIMIT', 0, 1)[1]
    if not entry then
      break
    end
    local limit = string.match(entry, '^[^%z]*')
    if not is_limit_full(touch_limit(limit)) and not redis.call('ZSCORE', KEYS.openings, limit) then
      found[#found + 1] = limit
    end
    from = table.concat({ '[', limit, '\1' })
  end
  return found
end

local function has_entry(limit, item)
  return redis.call('ZSCORE', KEYS.waiters, table.concat({ limit, '\0', item }))
end

-- Return whether a limited task is among the waiters of a limit.
local function lists(limit, short, id, tag)
  local state = touch_limit(limit)
  for _, item in ipairs(waiter_items.list(state.items, state.from)) do
    if item == short .. id then
      return has_entry(limit, '')
    end
  end
  return has_entry(limit, short .. id) or has_entry(limit, short) and #limited_at(tag) == 1
end

-- Return the limited tasks of this part that have no item among the waiters.
local function unlisted_tasks()
  local found, part = {}, redis.call('ZRANGE', KEYS.limited, first, last, 'WITHSCORES')
  for at = 1, #part, 2 do
    local message, is_listed = redis.call('HGET', KEYS.tasks, part[at]), false
    local limits = limits_of_message(message)
    local short = waiter_items.new(part[at + 1], #limits > 1 and '\0' or '')
    limits[#limits + 1] = type_limit(message)
    for _, limit in ipairs(limits) do
      is_listed = is_listed or lists(limit, short, part[at], part[at + 1])
    end
    if not is_listed then
      found[#found + 1] = part[at]
    end
  end
  return found, #part / 2
end

-- Return whether an item represents exactly one limited task.
local function is_item(item)
  local ids = ids_of(item)
  return #ids == 1 and redis.call('ZSCORE', KEYS.limited, ids[1])
end

-- Return the entries of this part that do not represent exactly one limited task. If an entry is a
-- marker, the items in the state of its limit are checked too. Invalid items are returned as
-- entries; a marker is returned if the state has no items.
local function stray_waiters()
  local found, part = {}, redis.call('ZRANGE', KEYS.waiters, first, last)
  for _, entry in ipairs(part) do
    local limit = string.match(entry, '^([^%z]*)%z')
    local state = limit and touch_limit(limit)
    local is_marker = state and #entry == #limit + 1
    local items = is_marker and waiter_items.list(state.items, state.from) or {}
    if is_marker and #items == 0 or not is_marker and not (
      state and is_item(string.sub(entry, #limit + 2))
    ) then
      found[#found + 1] = entry
    end
    for _, item in ipairs(items) do
      if not is_item(item) then
        found[#found + 1] = entry .. item
      end
    end
  end
  return found, #part
end

local layout = redis.call('HGET', KEYS.meta, 'schema')
local unmarked = layout ~= newest_schema and redis.call('EXISTS', KEYS.holds, KEYS.limited) > 0
local unlisted, tasks = unlisted_tasks()
local strays, entries = stray_waiters()
local counts = first == 0 and count_holds()
return reply({
  miscounted = counts and miscounted(counts) or {}, shut = first == 0 and shut_limits() or {},
  unlisted = unlisted, strays = strays, more = math.max(tasks, entries) > last - first,
  uncounted = first == 0 and not counts, unmarked = unmarked,
})
