-- start_successors: restart tasks that were replaced while they were active.

-- Find out which ids have a successor. `positions` has the position of each id. Returns a table
-- with the ids, positions and records of the tasks that have a successor, and the positions and ids
-- of the rest. Fails before the first write if start_successors would fail.
local function split_successors(positions, ids)
  local found = { ids = {}, positions = {}, records = {} }
  if #ids == 0 or redis.call('EXISTS', KEYS.successors) == 0 then
    return found, positions, ids
  end
  local rest_positions, rest = {}, {}
  for i, record in ipairs(redis.call('HMGET', KEYS.successors, unpack(ids))) do
    if read_successor(record or '') then
      local at = #found.ids + 1
      found.ids[at], found.positions[at], found.records[at] = ids[i], positions[i], record
    else
      rest_positions[#rest + 1], rest[#rest + 1] = positions[i], ids[i]
    end
  end
  if #found.ids > 0 then
    check_set(KEYS.scheduled)
    check_hash(KEYS.tasks)
    check_hash(KEYS.keys)
    check_hash(KEYS.crashes)
    check_hash(KEYS.failures)
    check_hash(KEYS.cancels)
    check_rights(KEYS.tasks, { 'HSET', 'HDEL', 'ZADD', 'ZRANGE' })
  end
  return found, rest_positions, rest
end

-- Restart tasks whose attempt has ended, with the message and due time of their successor and with
-- all attempts. An earlier cancel request does not apply to them. `found` is what split_successors
-- returned; the caller must have released the leases. With `crashed`, the tasks keep their crash
-- counts.
local function start_successors(found, crashed)
  if #found.ids == 0 then
    return
  end
  local bodies, keys, later, bytes = {}, {}, {}, 0
  for at, id in ipairs(found.ids) do
    local due, member, message = read_successor(found.records[at])
    later[2 * at - 1], later[2 * at] = due, id
    bodies[2 * at - 1], bodies[2 * at] = id, message
    hold_limits_of(id, message)
    bytes = bytes + #message
    if member ~= '' then
      keys[#keys + 1] = id
      keys[#keys + 1] = member
    end
  end
  if keeps_bytes() then
    add_bytes(bytes - stored_bytes(found.ids))
  end
  redis.call('HSET', KEYS.tasks, unpack(bodies))
  redis.call('HDEL', KEYS.keys, unpack(found.ids))
  if #keys > 0 then
    redis.call('HSET', KEYS.keys, unpack(keys))
  end
  redis.call('HDEL', KEYS.failures, unpack(found.ids))
  redis.call('HDEL', KEYS.cancels, unpack(found.ids))
  if not crashed then
    redis.call('HDEL', KEYS.crashes, unpack(found.ids))
  end
  schedule_due(KEYS.scheduled, later)
  note_since(later)
  redis.call('HDEL', KEYS.successors, unpack(found.ids))
end
