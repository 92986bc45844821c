-- clock: read the current time in microseconds, and convert numbers to text and back.

-- Return the time `given` if a test passes one, else the time of the store's clock.
local function clock(given)
  if given ~= '' then
    return tonumber(given)
  end
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000000 + tonumber(time[2])
end

-- Return a number as text with all its digits (`..` would give 1.79e+15).
local function to_text(number)
  return string.format('%.0f', number)
end

-- Return the number in a text of digits, or `other` for any other text, so that a damaged record
-- does not make a script fail.
local function parse_int(text, other)
  if text and #text <= 16 and string.find(text, '^%d+$') then
    return tonumber(text)
  end
  return other
end

-- Return whether a recorded time is over an hour ahead, which means that the clock was wrong and
-- has been set back since. After a smaller step back, the recorded time is trusted until the clock
-- reaches it.
local function is_of_wrong_clock(moment, now)
  return moment - now > 3600000000
end
