-- counters: counters, total and per day. A day is the number of days since the Unix epoch.

-- Add to a counter. A value that is no number is replaced; a failed write does not fail the script.
local function add_to_counter(counter, amount)
  local answer = redis.pcall('HINCRBY', KEYS.stats, counter, amount)
  if type(answer) == 'table' and answer.err then
    redis.pcall('HSET', KEYS.stats, counter, amount)
  end
end

local function count(now, counter, amount)
  if amount > 0 then
    add_to_counter(counter, amount)
    add_to_counter(counter .. ':' .. to_text(math.floor(now / 86400000000)), amount)
  end
end
