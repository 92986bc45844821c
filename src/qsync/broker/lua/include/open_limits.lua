-- open_limits: let the next fetch check the waiters of limits that may be open now.

-- Maximum number of limits with waiters that one call opens; further limits open when a task
-- releases them.
local OPENED_MOST = 10000

-- Give each limit with waiters an opening that is due now. Visit the limits in byte order and start
-- at the limit `from`. Returns whether any limit has waiters.
local function open_limits(now, from, to)
  local any = false
  for _ = 1, OPENED_MOST do
    local entry = redis.call('ZRANGEBYLEX', KEYS.waiters, from, to, 'LIMIT', 0, 1)[1]
    if not entry then
      break
    end
    local limit = string.match(entry, '^[^%z]*')
    redis.call('ZADD', KEYS.openings, to_text(now), limit)
    from, any = table.concat({ '(', limit, '\1' }), true
  end
  return any
end

-- If a limit has waiters, give it an opening that is due now. Returns whether it has waiters.
local function open_one_limit(now, limit)
  return open_limits(now, table.concat({ '[', limit, '\0' }), table.concat({ '(', limit, '\1' }))
end
