-- lease_pending: lease the first pending tasks to a server.

-- Number of ids that one command reads.
local CHUNK = 50

-- Return `count` ids of `pending` from `position` on, plus the next one, if any, which shows that
-- more ids are left. `count` is capped at `most`, which defaults to CHUNK.
local function read_pending(position, count, most)
  return redis.call('ZRANGE', KEYS.pending, position, position + math.min(count, most or CHUNK))
end

-- flow:
-- Limits for parking. A fetch parks pending tasks that may not start, which means that it moves
-- them into `limited`. One fetch parks at most `most` tasks. Once it has parked at least half of
-- the tasks that it has read, it reads larger parts, because many of the next tasks may also be of
-- a paused type. A larger part has at most `chunk` ids and at most about `bytes` of messages.
local parking = { most = 300, chunk = 250, bytes = 4000000 }

-- Read the first `wanted` tasks that may start, up to `max_bytes` of messages; `head` is the result
-- of read_pending at position 0. A task with limits is taken if none of them refuses it and `free`
-- is above 0. A task that a limit refuses, or whose type is paused, is collected for park_pending.
-- A task for which there is no free slot stays in `pending`. At most `parking.most` tasks are
-- parked, and at most `limit` tasks that stay in `pending` are skipped. Returns: ids; messages; ids
-- without a message (normally none); whether tasks are left; ids to park; the limit that refused
-- each of these, by id; and a number. The number is 1 if no task stayed, 2 if all remaining tasks
-- stayed, and 3 if only some of them stayed.
local function take_pending(head, wanted, max_bytes, limit, free)
  local ids, messages, lost, parked, refused = {}, {}, {}, {}, {}
  local taken, bytes, position, chunk, stayed, surplus, read = 0, 0, 0, head, 0, false, 0
  local any_paused = limits_used and next(paused_limits()) ~= nil
  while taken < wanted and #lost < limit and stayed < limit and #parked < parking.most do
    local count = math.min(wanted - taken, CHUNK)
    if #parked > 0 and 2 * #parked >= position then
      count = math.min(parking.most - #parked, parking.chunk, parking.bytes * position / read)
      count = math.max(1, math.floor(count))
    end
    chunk = position == 0 and head or read_pending(position, count, parking.chunk)
    count = math.min(#chunk, count)
    local bodies = count > 0 and redis.call('HMGET', KEYS.tasks, unpack(chunk, 1, count)) or {}
    if limits_used and count > 0 then
      read_holds({ unpack(chunk, 1, count) })
    end
    for i = 1, #bodies do
      local id, body = chunk[i], bodies[i]
      local limits = held_limits[id]
      read = read + (body and #body or 0)
      local refusing = body and any_paused and paused_limit(body)
        or body and limits and unstartable_limit(limits)
      if not body then
        lost[#lost + 1] = id
      elseif refusing then
        parked[#parked + 1], refused[id] = id, refusing
      elseif limits and free <= 0 then
        stayed = stayed + 1
      elseif taken >= wanted then
        surplus = true
      elseif taken > 0 and bytes + #body > max_bytes then
        return ids, messages, lost, true, parked, refused, stayed > 0 and 3 or 1
      else
        taken, bytes = taken + 1, bytes + #body
        ids[taken], messages[taken] = id, body
        if limits then
          free = free - 1
          take_limits(limits)
        end
      end
    end
    position = position + count
    if #chunk == count then
      return ids, messages, lost, surplus or stayed > 0, parked, refused,
        stayed == 0 and 1 or surplus and 3 or 2
    end
  end
  local left = wanted > 0 or #head > 0
  return ids, messages, lost, left, parked, refused,
    stayed == 0 and 1 or stayed < limit and 3 or 2
end
-- plain:
-- Read the first `wanted` tasks, up to `max_bytes` of messages; `head` is the result of
-- read_pending at position 0. Returns ids; messages; ids without a message, of which there should
-- be none; and whether tasks are left.
local function take_pending(head, wanted, max_bytes, limit)
  local ids, messages, lost = {}, {}, {}
  local taken, bytes, position, chunk = 0, 0, 0, head
  while taken < wanted and #lost < limit do
    chunk = position == 0 and head or read_pending(position, wanted - taken)
    local count = math.min(#chunk, wanted - taken, CHUNK)
    local bodies = count > 0 and redis.call('HMGET', KEYS.tasks, unpack(chunk, 1, count)) or {}
    for i, body in ipairs(bodies) do
      if not body then
        lost[#lost + 1] = chunk[i]
      elseif taken > 0 and bytes + #body > max_bytes then
        return ids, messages, lost, true
      else
        taken, bytes = taken + 1, bytes + #body
        ids[taken], messages[taken] = chunk[i], body
      end
    end
    position = position + count
    if #chunk == count then
      return ids, messages, lost, false
    end
  end
  return ids, messages, lost, wanted > 0 or #head > 0
end
-- end flow

-- Lease tasks. If one of the writes would fail, nothing is written, because the permissions are
-- checked first. The types of the keys are correct, because the script has already read the keys.
local function write_leases(ids, token, expiry)
  check_rights(KEYS.active, #ids > 16 and { 'ZADD', 'ZREM', 'HDEL' } or { 'ZADD', 'ZREM' })
  local leases, owners = {}, {}
  for i, id in ipairs(ids) do
    leases[2 * i - 1], leases[2 * i] = expiry + i - 1, id
    owners[2 * i - 1], owners[2 * i] = id, token
  end
  if #ids > 16 then
    -- The store keeps a hash of up to 512 short values as a list, which every lookup scans.
    -- Therefore a long value is written first, which turns the list into a hash table until the key
    -- is deleted.
    redis.call('HSET', KEYS.owner, ' ', string.rep('x', 65), unpack(owners))
    redis.call('HDEL', KEYS.owner, ' ')
  else
    redis.call('HSET', KEYS.owner, unpack(owners))
  end
  redis.call('ZREM', KEYS.pending, unpack(ids))
  redis.call('ZADD', KEYS.active, unpack(leases))
end
