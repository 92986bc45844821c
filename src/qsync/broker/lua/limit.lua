#!lua flags=no-writes
-- limit: read a limit: its rules, its state, and the first tasks that hold it or wait for it.
-- include: check_schema clock waiting_tasks
-- KEYS[1] limits       hash  limit -> its state
-- KEYS[2] limit_rules  hash  name -> its rule
-- KEYS[3] waiters      zset  limit and id of each limited task
-- KEYS[4] holds        hash  id -> its limits, of unfinished tasks that are not limited
-- KEYS[5] active       zset  ids by lease expiry
-- KEYS[6] pending      zset  ids by order tag
-- KEYS[7] meta         hash  schema
-- ARGV[1] now    int us  empty: the store's clock
-- ARGV[2] limit  text    the limit
-- ARGV[3] name   text    its name
-- ARGV[4] id     text    a task whose place among those that wait is asked for; empty: none
-- ARGV[5] most   int     number of active, pending and waiting tasks that are read
-- REPLY[1] now      int    us
-- REPLY[2] state    bytes  state of the limit; empty: none
-- REPLY[3] program  bytes  rule of the program for the name; empty: none
-- REPLY[4] general  bytes  rule of an operator for the name
-- REPLY[5] own      bytes  rule of an operator for the limit
-- REPLY[6] waiting  int    number of tasks that wait for the limit
-- REPLY[7] rank     int    number of tasks that wait before the task; -1: not known
-- REPLY[8] holders  list   ids of active and of pending tasks that hold it
-- returns the fields of REPLY
check_schema()
local now, most = clock(ARGV.now), tonumber(ARGV.most)

-- Add the ids of a set's first members that hold the limit.
local function add_holders(set_key, holders)
  local ids = redis.call('ZRANGE', set_key, 0, most - 1)
  if #ids == 0 then
    return
  end
  local wanted = table.concat({ '\0', ARGV.limit, '\0' })
  for i, held in ipairs(redis.call('HMGET', KEYS.holds, unpack(ids))) do
    local all = held and table.concat({ '\0', held, '\0' }) or ''
    if string.find(all, wanted, 1, true) then
      holders[#holders + 1] = ids[i]
    end
  end
end

-- Return how many of the first waiting tasks come before the task; -1 if it is none of them.
local function rank_of(id)
  local limit = ARGV.limit
  local first, last = '[' .. limit .. '\0', '(' .. limit .. '\1'
  local entries = redis.call('ZRANGEBYLEX', KEYS.waiters, first, last, 'LIMIT', 0, most)
  local skipped = #limit + 10 -- the limit, a zero byte, and the order tag
  for i, entry in ipairs(entries) do
    if string.sub(entry, skipped) == id then
      return i - 1
    end
  end
  return -1
end

local holders = {}
add_holders(KEYS.active, holders)
add_holders(KEYS.pending, holders)
local name, limit = ARGV.name, ARGV.limit
local rules = redis.call('HMGET', KEYS.limit_rules, name, '!' .. name, '!' .. limit)
return reply({
  now = now, state = redis.call('HGET', KEYS.limits, limit), program = rules[1],
  general = rules[2], own = rules[3], waiting = waiting_tasks(limit),
  rank = ARGV.id == '' and -1 or rank_of(ARGV.id), holders = holders,
})
