-- change_rules: change the rule of a limit, and let the next fetch check its waiters.

-- Store a rule in a field of limit_rules; an empty rule removes the field. `layout` is the recorded
-- data layout of the queue; a change records the current layout if it is missing. Returns 1 if the
-- field changed.
local function change_rule(now, field, rule, layout)
  local before = redis.call('HGET', KEYS.limit_rules, field)
  if (before or '') == rule then
    return 0
  end
  ensure_schema(layout)
  if rule == '' then
    redis.call('HDEL', KEYS.limit_rules, field)
  else
    redis.call('HSET', KEYS.limit_rules, field, rule)
  end
  local name = string.match(field, '^!?(.*)$')
  open_one_limit(now, name)
  open_limits(now, table.concat({ '[', name, ':' }), table.concat({ '(', name, ';' }))
  return 1
end
