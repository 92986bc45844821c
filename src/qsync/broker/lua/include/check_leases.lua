-- check_leases: find out which tasks a server still owns.

-- Compare the tokens in `args` with the owners. From position `first` on, `args` has `stride`
-- values per task, the first two of which are id and token.
-- Returns the positions of owned tasks, their ids, one reply per task, and the number of lost
-- tasks. A reply is 'ok', 'done' (no owner: the task ended or was handed back) or 'lost' (another
-- owner).
local function check_leases(args, first, stride)
  local total = (#args - first + 1) / stride
  local held, held_ids, replies, kept, lost = {}, {}, {}, 0, 0
  if total == 0 then
    return held, held_ids, replies, lost
  end
  local ids = {}
  for i = 1, total do
    ids[i] = args[first + stride * (i - 1)]
  end
  local seen = {}
  for i, owner in ipairs(redis.call('HMGET', KEYS.owner, unpack(ids))) do
    local id = ids[i]
    if not owner or seen[id] then
      replies[i] = 'done'
    elseif owner == args[first + stride * (i - 1) + 1] then
      replies[i] = 'ok'
      kept = kept + 1
      held[kept], held_ids[kept] = i, id
      seen[id] = true
    else
      replies[i] = 'lost'
      lost = lost + 1
    end
  end
  return held, held_ids, replies, lost
end
