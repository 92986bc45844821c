#!lua flags=no-writes
-- list_limits: read the rules of a queue's limits, and some of the states of limits in use.
-- include: check_schema clock waiter_entries
-- KEYS[1] limit_rules hash  name -> its rule
-- KEYS[2] limits    hash    limit -> its state
-- KEYS[3] waiters   zset    limit and id of each limited task
-- KEYS[4] openings  zset    limits by the time at which they open, us
-- KEYS[5] meta      hash    schema
-- ARGV[1] now       int us  empty: the store's clock
-- ARGV[2] cursor    text    0 at first, then the cursor that the last call returned
-- ARGV[3] count     int     approximate number of states to read
-- REPLY[1] now      text    us
-- REPLY[2] rules    list    alternating fields and rules; only with the cursor 0
-- REPLY[3] cursor   text    cursor of the next call; 0: the end
-- REPLY[4] states   list    one row per limit: limit, state, number of waiters, time it opens or empty
-- returns the fields of REPLY
check_schema()
local rules = ARGV.cursor == '0' and redis.call('HGETALL', KEYS.limit_rules) or {}
local part = redis.call('HSCAN', KEYS.limits, ARGV.cursor, 'COUNT', ARGV.count)
local states = {}
for i = 1, #part[2], 2 do
  local limit = part[2][i]
  local state, items = waiter_items.split_state(part[2][i + 1])
  local waiting = count_waiters(limit, items)
  local opens_at = redis.call('ZSCORE', KEYS.openings, limit)
  states[#states + 1] = { limit, state, waiting, opens_at or '' }
end
return reply({
  now = to_text(clock(ARGV.now)), rules = rules, cursor = part[1], states = states,
})
