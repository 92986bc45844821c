#!lua flags=allow-oom
-- abandon: expire the leases of a dead server now, so that the next fetch recovers its tasks.
-- Expiries are moved below 0 and keep their order. After an outage, recovery of other leases is
-- delayed, but leases that expire below 0 are recovered without a delay. Each call scans only a
-- part of the owners, so that no call takes long.
-- include: check_schema clock wake_server
-- KEYS[1] active  zset    ids by lease expiry
-- KEYS[2] owner   hash    id -> lease token
-- KEYS[3] wake    list
-- KEYS[4] meta    hash    schema
-- KEYS[5] idle      zset    ids of servers that a message wakes
-- ARGV[1] server  text    id of the dead server
-- ARGV[2] cursor  text    0 at first, then the cursor that the last call returned
-- returns the next cursor (0: done) and the number of leases that it expired
check_schema()
local mine = { [ARGV.server .. '/'] = true, [ARGV.server .. '~'] = true }
local part = redis.call('HSCAN', KEYS.owner, ARGV.cursor, 'COUNT', 500)
local found = 0
for i = 1, #part[2], 2 do
  if mine[string.sub(part[2][i + 1], 1, #ARGV.server + 1)] then
    local expiry = tonumber(redis.call('ZSCORE', KEYS.active, part[2][i]) or '') or 0
    if expiry >= 0 then
      redis.call('ZADD', KEYS.active, 'XX', to_text(expiry - 2 ^ 52), part[2][i])
    end
    found = found + 1
  end
end
if found > 0 then
  wake_server()
end
return { part[1], found }
