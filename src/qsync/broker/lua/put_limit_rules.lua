#!lua flags=allow-oom
-- put_limit_rules: store rules of limits. The next fetch checks the waiters of limits whose rules
-- changed. A rule does not stop running tasks. If too many tasks hold a limit, no further task
-- starts until the rule is met.
-- include: check_schema preconditions ensure_schema clock wake_server open_limits change_rules record_event
-- KEYS[1] limit_rules hash  name -> its rule
-- KEYS[2] waiters   zset    limit and id of each limited task
-- KEYS[3] openings  zset    limits by the time at which they open, us
-- KEYS[4] meta      hash    schema
-- KEYS[5] wake      list
-- KEYS[6] idle      zset    ids of servers that a message wakes
-- KEYS[7] events    stream  actions of operators
-- ARGV[1] now       int us  empty: the store's clock
-- ARGV[2] event    bytes   record of the action, see include/record_event.lua; empty: none
-- ARGV[3] by        text    operator who sets the rules; empty: they are the program's
-- ARGV[4...] two values per rule: its name, or for an operator also one limit, and the rule; empty:
--   remove it
-- returns the number of rules that changed
local layout = redis.call('HGET', KEYS.meta, 'schema')
is_current_schema(layout)
check_set(KEYS.waiters)
check_set(KEYS.openings)
check_rights(KEYS.limit_rules, { 'HSET', 'HDEL', 'ZADD', 'ZRANGEBYLEX' })
local now, changed = clock(ARGV.now), 0
for i = 4, #ARGV, 2 do
  local field, rule = ARGV[i], ARGV[i + 1]
  if ARGV.by ~= '' then
    field = table.concat({ '!', field })
    rule = rule ~= '' and table.concat({ rule, to_text(now), ARGV.by }, ' ') or ''
  end
  changed = changed + change_rule(now, field, rule, layout)
end
if changed > 0 then
  wake_server()
end
return record_event(now, ARGV.event, changed, {})
