-- promote_due: move due tasks from `scheduled` and `retry` to `pending`.

-- Returns the earliest due time of the tasks that were not moved, whether more tasks are due now,
-- and whether any were moved.
local function promote_due(now, limit)
  local next_due, more, moved = math.huge, false, false
  for _, set_key in ipairs({ KEYS.scheduled, KEYS.retry }) do
    local first = lowest_score(set_key)
    if first <= now then
      local due = due_ids(set_key, now, limit)
      check_transitions()
      check_set(KEYS.fairness)
      check_hash(KEYS.keys)
      redis.call('ZREM', set_key, unpack(due))
      to_pending(due)
      more, moved = more or #due == limit, true
      first = lowest_score(set_key)
    end
    next_due = math.min(next_due, first)
  end
  return next_due, more, moved
end
