-- counters: change the counters of a queue, in total and per day. A day is the number of days since
-- the Unix epoch.

-- Add to a counter. A value that is not a number is replaced; a failed write does not fail the script.
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

-- Add to two paired counters with one read and one write. If the sums are too large to be exact, or
-- the values are not numbers, add to each counter separately.
local function count_pair(now, counter, amount, partner, partner_amount)
  local day = to_text(math.floor(now / 86400000000))
  local counter_day, partner_day = counter .. ':' .. day, partner .. ':' .. day
  local known = redis.pcall('HMGET', KEYS.stats, counter, counter_day, partner, partner_day)
  local a, b = tonumber(known[1] or 0), tonumber(known[2] or 0)
  local c, d = tonumber(known[3] or 0), tonumber(known[4] or 0)
  local sum = a and b and c and d and a + b + c + d + amount + partner_amount or 0
  if known.err or not (sum > 0 and sum < 2 ^ 53 and sum % 1 == 0) then
    count(now, counter, amount)
    count(now, partner, partner_amount)
  else
    redis.pcall(
      'HSET', KEYS.stats, counter, a + amount, counter_day, b + amount,
      partner, c + partner_amount, partner_day, d + partner_amount
    )
  end
end
