#!lua flags=no-writes
-- get_limit: read one limit, with its rules, its state, the active and the pending tasks that hold
-- it, and one waiting task's place.
-- include: check_schema clock waiter_entries
-- KEYS[1] limit_rules hash  name -> its rule
-- KEYS[2] limits    hash    limit -> its state
-- KEYS[3] waiters   zset    limit and id of each limited task
-- KEYS[4] openings  zset    limits by the time at which they open, us
-- KEYS[5] active    zset    ids by lease expiry
-- KEYS[6] holds     hash    id -> its limits, of unfinished tasks
-- KEYS[7] limited   zset    ids by order tag
-- KEYS[8] meta      hash    schema
-- KEYS[9] pending   zset    ids by order tag
-- ARGV[1] now       int us  empty: the store's clock
-- ARGV[2] limit     text
-- ARGV[3] id        text    id of a limited task; empty: none
-- ARGV[4] most      int     maximum number of ids to return
-- REPLY[1] now       text   us
-- REPLY[2] operator  bytes  operator's rule for this limit
-- REPLY[3] by_name   bytes  operator's rule for the name of the limit
-- REPLY[4] program   bytes  program's rule
-- REPLY[5] state     text
-- REPLY[6] waiting   int    number of tasks that wait for this limit
-- REPLY[7] opens_at  text   us; empty: no task waits, or the waiters need a free slot
-- REPLY[8] holders list ids of active tasks that hold it, among the first 10,000 active tasks
-- REPLY[9] place     int    number of waiters before the task; -1: it does not wait for this limit
-- REPLY[10] ready   list    ids of pending tasks that hold it, among the first and the last 5,000
--   pending tasks
-- returns the fields of REPLY
check_schema()
local limit, most = ARGV.limit, tonumber(ARGV.most)
local name = string.match(limit, '^[^:]*')
local rules = redis.call(
  'HMGET', KEYS.limit_rules, table.concat({ '!', limit }), table.concat({ '!', name }), name
)

local state, first_items = waiter_items.split_state(redis.call('HGET', KEYS.limits, limit) or '')
local items = waiter_items.list(first_items, 1)

-- Add those of the ids whose tasks hold the limit to `found`, until it has `wanted` ids. Returns
-- whether the caller should read further ids.
local function add_holders(found, wanted, ids)
  local mark = table.concat({ '\0', limit, '\0' })
  local held = #ids > 0 and redis.call('HMGET', KEYS.holds, unpack(ids)) or {}
  for i = 1, #held do
    local text = table.concat({ '\0', held[i] or '', '\0' })
    if #found < wanted and string.find(text, mark, 1, true) then
      found[#found + 1] = ids[i]
    end
  end
  return #ids > 0 and #found < wanted
end

-- Return the ids of active tasks that hold the limit.
local function active_holders()
  local found, first = {}, 0
  while first < 10000 and add_holders(
    found, most, redis.call('ZRANGE', KEYS.active, first, first + 499)
  ) do
    first = first + 500
  end
  return found
end

-- Return the ids of pending tasks that hold the limit. Tasks of low priorities are at the end.
local function ready_holders()
  local ready = tonumber(string.match(state, '^%d+ (%d+) ') or 0)
  local found, wanted, first = {}, math.min(ready, most), 0
  local more = wanted > 0
  while more and first < 5000 do
    more = add_holders(found, wanted, redis.call('ZRANGE', KEYS.pending, first, first + 499))
    first = first + 500
  end
  local last = more and redis.call('ZCARD', KEYS.pending) - 1 or 0
  local lowest = math.max(first, last - 4999)
  while more and last >= lowest do
    local from = math.max(lowest, last - 499)
    more = add_holders(found, wanted, redis.call('ZRANGE', KEYS.pending, from, last))
    last = from - 1
  end
  return found
end

-- Return the number of waiters before the task; -1 when it does not wait for this limit.
local function place()
  local tag = redis.call('ZSCORE', KEYS.limited, ARGV.id)
  if not tag then
    return -1
  end
  for _, several in ipairs({ '', '\0' }) do
    local short = waiter_items.new(tag, several)
    for i, item in ipairs(items) do
      if item == short .. ARGV.id then
        return i - 1
      end
    end
    for _, ending in ipairs({ '', ARGV.id }) do
      local entry = table.concat({ limit, '\0', short, ending })
      if redis.call('ZSCORE', KEYS.waiters, entry) then
        local from = table.concat({ '(', limit, '\0' })
        return #items + redis.call('ZLEXCOUNT', KEYS.waiters, from, '(' .. entry)
      end
    end
  end
  return -1
end

local waiting = count_waiters(limit, first_items)
local opens_at = redis.call('ZSCORE', KEYS.openings, limit)
return reply({
  now = to_text(clock(ARGV.now)), operator = rules[1], by_name = rules[2], program = rules[3],
  state = state, waiting = waiting, opens_at = opens_at, place = place(),
  holders = active_holders(), ready = ready_holders(),
})
