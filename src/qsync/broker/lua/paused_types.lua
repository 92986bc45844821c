#!lua flags=no-writes
-- paused_types: read which types of tasks are paused in a queue.
-- include: check_schema clock
-- KEYS[1] limit_rules hash  `@` -> paused types, `@<type>` -> pause
-- KEYS[2] waiters   zset    limit and id of each limited task
-- KEYS[3] meta      hash    schema
-- ARGV[1] now       int us  empty: the store's clock
-- REPLY[1] now      text    us
-- REPLY[2] types    list    one row per type: type, pause, number of tasks that wait until it is resumed
check_schema()
local types = {}
for name in string.gmatch(redis.call('HGET', KEYS.limit_rules, '@') or '', '[^%z]+') do
  local limit = table.concat({ '@', name })
  local waiting = redis.call(
    'ZLEXCOUNT', KEYS.waiters, table.concat({ '[', limit, '\0' }), table.concat({ '(', limit, '\1' })
  )
  types[#types + 1] = { name, redis.call('HGET', KEYS.limit_rules, limit) or '', waiting }
  if #types == 100 then -- no more can be paused
    break
  end
end
return reply({ now = to_text(clock(ARGV.now)), types = types })
