-- calls: an enqueue that comes again, since its reply was lost, is answered as at first.
-- A sender numbers its calls and has one of them under way at a time, so its last one is all that
-- there is to keep: `<number> <time us>`, and for each task of it that was not created its place,
-- the outcome and the holder, with spaces between.

-- The number of the last call of a sender, -1 when none is known, and what is kept of it.
local function last_call(calls_key, sender)
  local last = redis.call('HMGET', calls_key, sender)[1]
  if not last then
    return -1
  end
  return digits(string.match(last, '^%d+'), -1), last
end

-- Of each task of a call that was not created its place, the outcome and the holder, one after
-- another, by what is kept of the call.
local function others_of(last)
  local others = {}
  for place, outcome, holder in string.gmatch(last, ' (%d+) (%a+) (%S+)') do
    local at = #others
    others[at + 1], others[at + 2], others[at + 3] = tonumber(place), outcome, holder
  end
  return others
end

-- Keep a call as the last one of its sender; `others` are as others_of returns them.
local function keep_call(calls_key, sender, number, now, others)
  local kept = { whole(number), whole(now), unpack(others) }
  redis.call('HSET', calls_key, sender, table.concat(kept, ' '))
end
