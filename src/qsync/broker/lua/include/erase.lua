-- erase: remove tasks from the queue or from active, and end cancelled tasks.

-- Delete the entries of ids in a hash. Errors are ignored: no task depends on these entries.
local function forget_beside(beside_key, ids)
  redis.pcall('HDEL', beside_key, unpack(ids))
end

-- Delete all data of ids that leave the queue. The caller removes them from the state sets. Optional
-- hashes are only touched if they exist.
local function erase(k, now, ids)
  if #ids == 0 then
    return
  end
  redis.call('HDEL', k.tasks, unpack(ids))
  if redis.call(
    'EXISTS', k.unique, k.keys, k.crashes, k.failures, k.results, k.cancels, k.progress
  ) == 0 then
    return
  end
  unlock(k.unique, now, ids)
  for _, beside_key in ipairs({
    k.keys, k.crashes, k.failures, k.results, k.cancels, k.progress,
  }) do
    if redis.call('EXISTS', beside_key) == 1 then
      forget_beside(beside_key, ids)
    end
  end
end

-- Remove ids from active, with their owner and, unless `keep_progress`, their progress. The tasks
-- stay in the queue.
local function release(k, ids, keep_progress)
  if #ids == 0 then
    return
  end
  local any_progress = not keep_progress and redis.call('EXISTS', k.progress) == 1
  redis.call('ZREM', k.active, unpack(ids))
  redis.call('HDEL', k.owner, unpack(ids))
  if any_progress then
    forget_beside(k.progress, ids)
  end
end

-- Allow ids to be enqueued again at once: an operator or client removed these tasks on purpose.
local function forget_recent(k, ids)
  if #ids > 0 and redis.call('EXISTS', k.recent) == 1 then
    redis.pcall('ZREM', k.recent, unpack(ids))
  end
end

-- Fail before the first write if end_cancelled would fail.
local function check_cancelled(k)
  check_hash(k.tasks)
  check_hash(k.cancels)
  check_set(k.completed)
end

-- End cancelled tasks: those with a retention go to completed, the others leave the queue. The
-- `cancels` hash has the retention. The caller has removed the ids from their state already.
local function end_cancelled(k, now, ids)
  local gone = {}
  for _, id in ipairs(ids) do
    local retention = digits(redis.call('HGET', k.cancels, id))
    if retention then
      redis.call('ZADD', k.completed, whole(now + retention), id)
      if redis.call('EXISTS', k.keys) == 1 then
        forget_beside(k.keys, { id })
      end
      unlock(k.unique, now, { id })
    else
      gone[#gone + 1] = id
    end
  end
  note_ended(ids)
  forget_recent(k, ids)
  erase(k, now, gone)
  count(k.stats, now, 'cancelled', #ids)
end
