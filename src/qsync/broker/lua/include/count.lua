-- count: counters, in all and per day. A day is a number of days since the Unix epoch.

-- A counter that somebody spoilt begins again. One that cannot be written stops no task.
local function add(stats_key, counter, amount)
  local answer = redis.pcall('HINCRBY', stats_key, counter, amount)
  if type(answer) == 'table' and answer.err then
    redis.pcall('HSET', stats_key, counter, amount)
  end
end

local function count(stats_key, now, counter, amount)
  if amount > 0 then
    add(stats_key, counter, amount)
    add(stats_key, counter .. ':' .. whole(math.floor(now / 86400000000)), amount)
  end
end
