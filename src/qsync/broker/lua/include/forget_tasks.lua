-- forget_tasks: remove tasks from the queue or from `active`, and end cancelled tasks.

-- Delete the entries of ids in a hash. Errors are ignored, since no task depends on these entries.
local function delete_fields(beside_key, ids)
  redis.pcall('HDEL', beside_key, unpack(ids))
end

-- Return whether tasks may have data other than their message that must be deleted.
local function has_records()
  -- flow:
  if redis.call('EXISTS', KEYS.successors) == 1 then
    return true
  end
  -- end flow
  return redis.call(
    'EXISTS', KEYS.unique, KEYS.keys, KEYS.crashes, KEYS.failures, KEYS.results, KEYS.cancels,
    KEYS.progress
  ) > 0
end

-- Delete all data of ids that leave the queue. The caller removes them from the state sets.
-- Optional hashes are touched only if they exist. `bare` is true if has_records() returned false.
local function forget_tasks(now, ids, bare)
  if #ids == 0 then
    return
  end
  -- flow:
  if keeps_bytes() then
    add_bytes(-stored_bytes(ids))
  end
  -- end flow
  redis.call('HDEL', KEYS.tasks, unpack(ids))
  -- flow:
  drop_holds(ids)
  -- end flow
  if bare or not has_records() then
    return
  end
  unlock(now, ids)
  for _, beside_key in ipairs({
    KEYS.keys, KEYS.crashes, KEYS.failures, KEYS.results, KEYS.cancels, KEYS.progress,
    -- flow:
    KEYS.successors,
    -- end flow
  }) do
    if redis.call('EXISTS', beside_key) == 1 then
      delete_fields(beside_key, ids)
    end
  end
end

-- Remove ids from `active`, together with their owner and, unless `keep_progress` is true, their
-- progress. The tasks stay in the queue.
local function release_leases(ids, keep_progress)
  if #ids == 0 then
    return
  end
  local any_progress = not keep_progress and redis.call('EXISTS', KEYS.progress) == 1
  -- flow:
  release_slots(ids)
  -- end flow
  redis.call('ZREM', KEYS.active, unpack(ids))
  redis.call('HDEL', KEYS.owner, unpack(ids))
  if any_progress then
    delete_fields(KEYS.progress, ids)
  end
end

-- Allow these ids to be enqueued again immediately, since an operator or client removed these tasks
-- on purpose.
local function forget_recent_ids(ids)
  if #ids > 0 and redis.call('EXISTS', KEYS.recent) == 1 then
    redis.pcall('ZREM', KEYS.recent, unpack(ids))
  end
end

-- Fail before the first write if end_cancelled would fail.
local function check_end_cancelled()
  check_hash(KEYS.tasks)
  check_hash(KEYS.cancels)
  check_set(KEYS.completed)
end

-- End cancelled tasks. Tasks with a retention go to `completed`, and the others leave the queue.
-- The `cancels` hash has the retention. The caller has already removed the ids from their state.
local function end_cancelled(now, ids)
  local gone = {}
  for _, id in ipairs(ids) do
    local retention = parse_int(redis.call('HGET', KEYS.cancels, id))
    if retention then
      redis.call('ZADD', KEYS.completed, to_text(now + retention), id)
      if redis.call('EXISTS', KEYS.keys) == 1 then
        delete_fields(KEYS.keys, { id })
      end
      unlock(now, { id })
      -- flow:
      drop_holds({ id })
      -- end flow
    else
      gone[#gone + 1] = id
    end
  end
  note_ended(ids)
  forget_recent_ids(ids)
  forget_tasks(now, gone)
  count(now, 'cancelled', #ids)
end
