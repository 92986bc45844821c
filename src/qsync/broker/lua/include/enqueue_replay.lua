-- enqueue_replay: record the last enqueue of each sender, so that a repeated call gets the same
-- reply. A sender numbers its calls and has one in flight at a time, so only its last call is kept.
-- The record is `<number> <time us>`. For each task that was not created, its place in the call,
-- the outcome and the holder follow. Spaces separate all values.

-- Return the number of a sender's last call (-1 if none is known), and the record of that call.
local function last_call(sender)
  local last = redis.call('HGET', KEYS.calls, sender)
  if not last then
    return -1
  end
  return parse_int(string.match(last, '^%d+'), -1), last
end

-- Parse the record of a call. Return a flat list with the place, outcome and holder of each task
-- that was not created.
local function refused_of(last)
  local others = {}
  for place, outcome, holder in string.gmatch(last, ' (%d+) (%a+) (%S+)') do
    local at = #others
    others[at + 1], others[at + 2], others[at + 3] = tonumber(place), outcome, holder
  end
  return others
end

-- Return the reply to a call with one task, from the record of the call.
local function first_reply(last, id)
  local outcome, holder = string.match(last, ' %d+ (%a+) (%S+)')
  return { outcome or 'created', holder or id }
end

-- Store a call as its sender's last call; `others` is a list in the form that refused_of
-- returns.
local function keep_call(sender, number, now, others)
  local kept = { to_text(number), to_text(now), unpack(others) }
  redis.call('HSET', KEYS.calls, sender, table.concat(kept, ' '))
end
