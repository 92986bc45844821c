-- change_rules: change the rule of a limit, and let the next fetch check its waiters.

-- Maximum number of limits with waiters that one rule change opens; the others open when a task
-- leaves.
local OPENED_MOST = 10000

-- Give each limit with waiters from `from` on, in order of bytes, an opening that is due now.
local function open_limits(now, from, to)
  for _ = 1, OPENED_MOST do
    local entry = redis.call('ZRANGEBYLEX', KEYS.waiters, from, to, 'LIMIT', 0, 1)[1]
    if not entry then
      return
    end
    local limit = string.match(entry, '^[^%z]*')
    redis.call('ZADD', KEYS.openings, to_text(now), limit)
    from = table.concat({ '(', limit, '\1' })
  end
end

-- Store a rule in a field of limit_rules; an empty one is removed. Returns 1 if that changed it.
local function change_rule(now, field, rule)
  local before = redis.call('HGET', KEYS.limit_rules, field)
  if (before or '') == rule then
    return 0
  end
  if rule == '' then
    redis.call('HDEL', KEYS.limit_rules, field)
  else
    redis.call('HSET', KEYS.limit_rules, field, rule)
  end
  local name = string.match(field, '^!?(.*)$')
  open_limits(now, table.concat({ '[', name, '\0' }), table.concat({ '(', name, '\1' }))
  open_limits(now, table.concat({ '[', name, ':' }), table.concat({ '(', name, ';' }))
  return 1
end
