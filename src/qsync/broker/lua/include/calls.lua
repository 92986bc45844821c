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

-- The replies to a call, by the ids that were sent with it and what is kept of it.
local function replies_again(ids, last)
  local replies = {}
  for i, id in ipairs(ids) do
    replies[2 * i - 1], replies[2 * i] = 'created', id
  end
  for place, outcome, holder in string.gmatch(last, ' (%d+) (%a+) (%S+)') do
    local i = tonumber(place)
    if ids[i] then
      replies[2 * i - 1], replies[2 * i] = outcome, holder
    end
  end
  return replies
end

-- Keep a call as the last one of its sender.
local function keep_call(calls_key, sender, number, now, replies, all_created)
  local kept = whole(number) .. ' ' .. whole(now)
  if not all_created then
    local others = { kept }
    for i = 1, #replies, 2 do
      if replies[i] ~= 'created' then
        local at = #others
        others[at + 1], others[at + 2] = whole((i + 1) / 2), replies[i]
        others[at + 3] = replies[i + 1]
      end
    end
    kept = table.concat(others, ' ')
  end
  redis.call('HSET', calls_key, sender, kept)
end
