#!lua flags=allow-oom
-- abandon: the leases of a dead server lapse at once; the next fetch recovers its tasks.
-- Takes one part of the owners a call, so that no call is long.
-- include: clock wake
-- KEYS[1] active  zset    ids by lease expiry
-- KEYS[2] owner   hash    id -> lease token
-- KEYS[3] wake    list
-- ARGV[1] now     int us  empty: the store's clock
-- ARGV[2] server  text    id of the dead server
-- ARGV[3] cursor  text    0 to begin with
-- returns the next cursor (0: all done) and how many leases were abandoned
local now, mine = whole(clock(ARGV[1])), ARGV[2] .. '/'
local part = redis.call('HSCAN', KEYS[2], ARGV[3], 'COUNT', 500)
local found = 0
for i = 1, #part[2], 2 do
  if string.sub(part[2][i + 1], 1, #mine) == mine then
    redis.call('ZADD', KEYS[1], 'XX', now, part[2][i])
    found = found + 1
  end
end
if found > 0 then
  wake(KEYS[3])
end
return { part[1], found }
