#!lua flags=allow-oom
-- open_limit: open a limit that a handler closed by raising RateLimited. The limit's rule still
-- applies. If a handler raises RateLimited afterwards, it closes the limit again.
-- include: check_schema preconditions clock wake_server open_limits record_event
-- KEYS[1] limits    hash    limit -> its state
-- KEYS[2] waiters   zset    limit and id of each limited task
-- KEYS[3] openings  zset    limits by the time at which they open, us
-- KEYS[4] meta      hash    schema
-- KEYS[5] wake      list
-- KEYS[6] idle      zset    ids of servers that a message wakes
-- KEYS[7] events    stream  actions of operators
-- ARGV[1] now       int us  empty: the store's clock
-- ARGV[2] event     bytes   record of the action, see include/record_event.lua; empty: none
-- ARGV[3] limit     text
-- returns 1 when it was closed, 0 when it was not
check_schema()
check_set(KEYS.waiters)
check_set(KEYS.openings)
check_rights(KEYS.limits, { 'HSET', 'HDEL', 'ZADD', 'ZRANGEBYLEX' })
local now, limit = clock(ARGV.now), ARGV.limit
local state = redis.call('HGET', KEYS.limits, limit) or ''
local use, ready, tat, closed, waiters = string.match(state, '^(%d+) (%d+) (%d+) (%d+)(.*)$')
if not closed or tonumber(closed) <= now then
  return record_event(now, ARGV.event, 0, {})
end
if tonumber(use) + tonumber(ready) > 0 or tonumber(tat) > now or waiters ~= '' then
  redis.call('HSET', KEYS.limits, limit, table.concat({ use, ' ', ready, ' ', tat, ' 0', waiters }))
else
  redis.call('HDEL', KEYS.limits, limit)
end
if open_one_limit(now, limit) then
  wake_server()
end
record_event(now, ARGV.event, 1, {})
return 1
