#!lua flags=no-writes
-- limits: read a part of the limits of a queue, and their rules.
-- include: check_schema clock waiting_tasks
-- KEYS[1] limits       hash  limit -> its state
-- KEYS[2] limit_rules  hash  name -> its rule
-- KEYS[3] waiters      zset  limit and id of each limited task
-- KEYS[4] meta         hash  schema
-- ARGV[1] now     int us  empty: the store's clock
-- ARGV[2] cursor  text    "0": the first part
-- ARGV[3] count   int     most rules to read, and about how many limits
-- returns now, the next cursor ("0": this was the last part), rules (name and rule in turn; only in
--   the first part) and limits (limit, state and number of tasks that wait, in turn)
check_schema()
local now, count = clock(ARGV.now), tonumber(ARGV.count)
local part = redis.call('HSCAN', KEYS.limits, ARGV.cursor, 'COUNT', count)
local found, rules = {}, {}
for i = 1, #part[2], 2 do
  found[#found + 1] = part[2][i]
  found[#found + 1] = part[2][i + 1]
  found[#found + 1] = waiting_tasks(part[2][i])
end
if ARGV.cursor == '0' then
  rules = redis.call('HSCAN', KEYS.limit_rules, '0', 'COUNT', count)[2]
end
return { now, part[1], rules, found }
