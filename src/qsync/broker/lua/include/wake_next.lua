-- wake_next: pass the remaining work to another server.

-- If no tasks are pending, restart the fairness keys and wake no server. Otherwise, forget fairness
-- keys whose last tag is not above the virtual time, and wake the next server.
local function wake_next(left, paused, virtual, limit)
  -- flow:
  -- If fairness keys restarted, new tasks would get lower tags than limited tasks have.
  if not left and redis.call('EXISTS', KEYS.limited) == 1 then
    redis.pcall('UNLINK', KEYS.wake)
    forget_passed(limit)
    return
  end
  -- end flow
  if not left then
    redis.pcall('UNLINK', KEYS.fairness, KEYS.wake)
    -- flow:
    restart_bands()
    -- end flow
    return
  end
  -- flow:
  forget_passed(limit)
  -- plain:
  local passed = redis.pcall('ZRANGEBYSCORE', KEYS.fairness, '-inf', virtual, 'LIMIT', 0, limit)
  if #passed > 0 then
    redis.pcall('ZREM', KEYS.fairness, unpack(passed))
  end
  -- end flow
  if not paused then
    wake_server()
  end
end
