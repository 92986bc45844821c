#!lua flags=no-writes
-- sample_types: count pending and dead tasks by type, at positions spread over each state.
-- If the messages of these tasks exceed 1 MiB in total, the script reads fewer tasks, which are
-- evenly spaced.
-- include: check_schema message_limits limit_states
-- KEYS[1] pending  zset    ids by order tag
-- KEYS[2] dead     zset    ids by time of death
-- KEYS[3] tasks    hash    id -> message
-- KEYS[4] limit_rules hash  `@` -> paused types
-- KEYS[5] meta     hash    schema
-- ARGV[1] count    int     number of tasks to read from each state, 1 to 200
-- REPLY[1] paused  list    paused types
-- REPLY[2] pending list    number of tasks in the state, number of tasks read, and then
--   alternating types and numbers
-- REPLY[3] dead    list    the same for dead tasks
check_schema()

-- Return the id at a random position in each of `count` equal parts. The positions are random,
-- since evenly spaced ones might show only one type if the types alternate.
local function spaced_ids(state_key, total, count)
  local ids = {}
  for i = 1, count do
    local rank = math.floor((i - 1 + math.random()) * total / count)
    ids[i] = redis.call('ZRANGE', state_key, rank, rank)[1]
  end
  return ids
end

-- Keep as many of these ids, evenly spaced, as have 1 MiB of messages.
local function thin_out(ids)
  local bytes, kept = 0, {}
  for _, id in ipairs(ids) do
    bytes = bytes + redis.call('HSTRLEN', KEYS.tasks, id)
  end
  for i = 1, #ids, math.max(1, math.ceil(bytes / 1048576)) do
    kept[#kept + 1] = ids[i]
  end
  return kept
end

local function count_types(state_key)
  local total = redis.call('ZCARD', state_key)
  local ids = thin_out(spaced_ids(state_key, total, math.min(total, tonumber(ARGV.count))))
  local messages = #ids > 0 and redis.call('HMGET', KEYS.tasks, unpack(ids)) or {}
  local counts, read = {}, 0
  for i = 1, #ids do
    local limit = messages[i] and type_limit(messages[i])
    if limit then
      read = read + 1
      counts[limit] = (counts[limit] or 0) + 1
    end
  end
  local row = { total, read }
  for limit, number in pairs(counts) do
    row[#row + 1] = string.sub(limit, 2)
    row[#row + 1] = number
  end
  return row
end

local paused = {}
for limit in pairs(paused_limits()) do
  paused[#paused + 1] = string.sub(limit, 2)
end
return reply({ paused = paused, pending = count_types(KEYS.pending), dead = count_types(KEYS.dead) })
