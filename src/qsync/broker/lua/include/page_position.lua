-- page_position: find the rank that a score and a member have, or would have, in a sorted set.

-- Return whether a text sorts before another one by bytes, as the store sorts members with equal
-- scores. (`<` uses the store's locale.)
local function bytes_before(a, b)
  for i = 1, math.min(#a, #b) do
    local left, right = string.byte(a, i), string.byte(b, i)
    if left ~= right then
      return left < right
    end
  end
  return #a < #b
end

-- Return the number of members before (score, id), plus one for that member itself if `with` is
-- true.
local function count_before(set_key, score, id, with)
  local low, high = 0, redis.call('ZCARD', set_key)
  while low < high do
    local middle = math.floor((low + high) / 2)
    local entry = redis.call('ZRANGE', set_key, middle, middle, 'WITHSCORES')
    local here = tonumber(entry[2])
    local before = here < score
      or here == score and (bytes_before(entry[1], id) or with and entry[1] == id)
    if before then
      low = middle + 1
    else
      high = middle
    end
  end
  return low
end
