-- clock: microseconds as the scripts see them, and numbers as text.

-- The time now: the argument when a test gives one, else the store's own clock.
local function clock(given)
  if given ~= '' then
    return tonumber(given)
  end
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000000 + tonumber(time[2])
end

-- A number as text that keeps all its digits (`..` would make 1.79e+15 of it).
local function whole(number)
  return string.format('%.0f', number)
end

-- The number that a text of digits stands for, else `other`: a record that somebody spoilt must
-- stop nobody.
local function digits(text, other)
  if text and #text <= 16 and string.find(text, '^%d+$') then
    return tonumber(text)
  end
  return other
end
