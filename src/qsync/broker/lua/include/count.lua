-- count: counters, in all and per day. A day is a number of days since the Unix epoch.

local function count(stats_key, now, counter, amount)
  if amount > 0 then
    local day = math.floor(now / 86400000000)
    redis.call('HINCRBY', stats_key, counter, amount)
    redis.call('HINCRBY', stats_key, counter .. ':' .. day, amount)
  end
end
