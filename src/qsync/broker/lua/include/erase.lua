-- erase: tasks that leave the queue, or end in it.

-- What is kept beside tasks goes, where it can: it decides nothing about them.
local function forget_beside(beside_key, ids)
  redis.pcall('HDEL', beside_key, unpack(ids))
end

-- Forget all that is kept of ids that leave the queue. `k` names the keys; the state sets are the
-- caller's business. The optional hashes are touched only where they exist.
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

-- Take ids out of active; their tasks go on existing, without their progress unless it is kept.
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

-- Let ids be enqueued again: somebody meant these tasks to go.
local function forget_recent(k, ids)
  if #ids > 0 and redis.call('EXISTS', k.recent) == 1 then
    redis.pcall('ZREM', k.recent, unpack(ids))
  end
end

-- Fail, before anything is written, when cancelled tasks could not end.
local function check_cancelled(k)
  check_hash(k.tasks)
  check_hash(k.cancels)
  check_set(k.completed)
end

-- Cancelled tasks end: with retention they are kept among completed, without they leave.
-- `cancels` holds the retention; they must already be out of the state that they were in.
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
