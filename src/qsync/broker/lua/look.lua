#!lua flags=no-writes
-- look: whether a server has anything to do in a queue. It costs a fifth of a fetch, and of all
-- servers that look only the first finds that something is due, and does it.
-- include: schema clock
-- KEYS[1] meta       hash    schema, paused, generation; when a server was last seen
-- KEYS[2] pending    zset    ids by order tag
-- KEYS[3] scheduled  zset    ids by due time
-- KEYS[4] retry      zset    ids by due time
-- KEYS[5] active     zset    ids by lease expiry
-- KEYS[6] completed  zset    ids by the time until which they are kept
-- ARGV[1] now        int us  empty: the store's clock
-- ARGV[2] lease      int us
-- returns generation, empty before the first fetch; 1 when tasks wait that may be fetched; 1 when
--   upkeep is due
local known = redis.call('HMGET', KEYS[1], 'schema', 'generation', 'paused', 'seen')
is_schema(known[1])
local generation = known[2] or ''
if redis.call('EXISTS', KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]) == 0 then
  return { generation, 0, 0 }
end
local now, due = clock(ARGV[1]), 0
for _, set_key in ipairs({ KEYS[3], KEYS[4], KEYS[5], KEYS[6] }) do
  local first = tonumber(redis.call('ZRANGE', set_key, 0, 0, 'WITHSCORES')[2] or '')
  if first and first <= now then
    due = 1
  end
end
-- While tasks are leased somebody has to say that servers are there: else their absence is taken for
-- an outage, and lapsed leases are spared.
if now - digits(known[4], 0) > tonumber(ARGV[2]) / 4 and redis.call('EXISTS', KEYS[5]) == 1 then
  due = 1
end
local waits = not known[3] and redis.call('EXISTS', KEYS[2]) == 1
return { generation, waits and 1 or 0, due }
