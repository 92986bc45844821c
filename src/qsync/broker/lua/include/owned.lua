-- owned: which of the (id, token) pairs still hold.

-- `args` holds pairs of id and token from position `first` on, `stride` values a task.
-- Returns the list of positions that are held, and one reply a task: 'ok', 'done' (nobody owns it:
-- it ended or was handed back) or 'lost' (somebody else owns it).
local function owned(owner_key, args, first, stride)
  local total = (#args - first + 1) / stride
  local ids = {}
  for i = 1, total do
    ids[i] = args[first + stride * (i - 1)]
  end
  if total == 0 then
    return ids, {}, {}
  end
  local owners = redis.call('HMGET', owner_key, unpack(ids))
  local held, replies, seen = {}, {}, {}
  for i = 1, total do
    local owner = owners[i]
    if not owner or seen[ids[i]] then
      replies[i] = 'done'
    elseif owner == args[first + stride * (i - 1) + 1] then
      replies[i] = 'ok'
      held[#held + 1] = i
      seen[ids[i]] = true
    else
      replies[i] = 'lost'
    end
  end
  return ids, held, replies
end
