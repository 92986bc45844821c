-- store: put new tasks into the queue. Shared by enqueue and tick.

-- `k` names the keys; `args` holds, from position `first` on, three values a task: id, message,
-- and options: empty or msgpack [due, fairness key, lock, window].
-- Returns a flat list, two values a task: outcome and the id of the holder.
local function store_tasks(k, args, first, now, head)
  local stamped = head .. struct.pack('>I8', now)
  local total = (#args - first + 1) / 3
  local ids = {}
  for i = 1, total do
    ids[i] = args[first + 3 * i - 3]
  end
  local stored = redis.call('HMGET', k.tasks, unpack(ids))
  local next_tag, save_tags = tagger(k.meta, k.fairness)
  local bodies, pending, scheduled, keys = {}, {}, {}, {}
  local here, replies, bytes, earliest = {}, {}, 0, nil
  for i = 1, total do
    local id, message, packed = ids[i], args[first + 3 * i - 2], args[first + 3 * i - 1]
    local outcome, holder = 'created', id
    local old = stored[i] and string.sub(stored[i], #stamped + 1) or here[id]
    if old then
      if old ~= message then
        outcome = 'exists'
      end
    else
      local due, key, lock, window = '', '', '', 0
      if packed ~= '' then
        due, key, lock, window = unpack(cmsgpack.unpack(packed))
      end
      if lock ~= '' then
        local held_by = lock_holder(k.unique, now, lock)
        if held_by then
          outcome, holder = 'duplicate', held_by
        else
          take_lock(k.unique, now, lock, window, id)
        end
      end
      if outcome == 'created' then
        here[id] = message
        bytes = bytes + #stamped + #message
        bodies[#bodies + 1] = id
        bodies[#bodies + 1] = stamped .. message
        local at = 0
        if due ~= '' then
          at = tonumber(due)
          if string.sub(due, 1, 1) == '+' then
            at = now + at
          end
        end
        if at > now then
          scheduled[#scheduled + 1] = whole(at)
          scheduled[#scheduled + 1] = id
          if not earliest or at < earliest then
            earliest = at
          end
        else
          pending[#pending + 1] = tag_text(next_tag(key))
          pending[#pending + 1] = id
        end
        if key ~= '' then
          keys[#keys + 1] = id
          keys[#keys + 1] = key
        end
      end
    end
    replies[2 * i - 1] = outcome
    replies[2 * i] = holder
  end
  if #bodies > 0 then
    redis.call('HSET', k.tasks, unpack(bodies))
    if #keys > 0 then
      redis.call('HSET', k.keys, unpack(keys))
    end
    if #scheduled > 0 then
      local first_due = redis.call('ZRANGE', k.scheduled, 0, 0, 'WITHSCORES')[2]
      redis.call('ZADD', k.scheduled, unpack(scheduled))
      if not first_due or earliest < tonumber(first_due) then
        wake(k.wake)
      end
    end
    if #pending > 0 then
      redis.call('ZADD', k.pending, unpack(pending))
      save_tags()
      wake(k.wake)
    end
    count(k.stats, now, 'enqueued', #bodies / 2)
    count(k.stats, now, 'bytes', bytes)
  end
  return replies
end
