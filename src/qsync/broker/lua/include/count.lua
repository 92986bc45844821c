-- count: counters, total and per day. A day is the number of days since the Unix epoch.

-- Add to a counter. A value that is no number is replaced; a failed write does not fail the script.
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
