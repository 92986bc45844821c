-- find_work: check whether there is anything to do in a queue.

-- Return four values: the generation (empty before the first fetch), whether tasks can be fetched
-- (1 or 0), whether upkeep is due (1 or 0), and the recorded data layout.
local function find_work(given_now, lease)
  local known = redis.call('HMGET', KEYS.meta, 'schema', 'generation', 'paused', 'seen')
  is_current_schema(known[1])
  local generation = known[2] or ''
  -- flow:
  if redis.call(
    'EXISTS', KEYS.pending, KEYS.scheduled, KEYS.retry, KEYS.active, KEYS.completed, KEYS.openings
  ) == 0 then
    return generation, 0, 0, known[1]
  end
  -- plain:
  if redis.call(
    'EXISTS', KEYS.pending, KEYS.scheduled, KEYS.retry, KEYS.active, KEYS.completed
  ) == 0 then
    return generation, 0, 0, known[1]
  end
  -- end flow
  local now, due = clock(given_now), 0
  -- flow:
  for _, set_key in ipairs({
    KEYS.scheduled, KEYS.retry, KEYS.active, KEYS.completed, KEYS.openings,
  }) do
  -- plain:
  for _, set_key in ipairs({ KEYS.scheduled, KEYS.retry, KEYS.active, KEYS.completed }) do
  -- end flow
    local first = tonumber(redis.call('ZRANGE', set_key, 0, 0, 'WITHSCORES')[2] or '')
    if first and first <= now then
      due = 1
    end
  end
  -- While tasks are leased, servers must record their presence. Otherwise, the next fetch assumes
  -- an outage and delays the recovery of expired leases.
  if now - parse_int(known[4], 0) > lease / 4 and redis.call('EXISTS', KEYS.active) == 1 then
    due = 1
  end
  local waits = not known[3] and redis.call('EXISTS', KEYS.pending) == 1
  return generation, waits and 1 or 0, due, known[1]
end
