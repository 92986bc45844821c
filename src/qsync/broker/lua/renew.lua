#!lua flags=allow-oom
-- renew: extend the leases that a server holds. The expiries increase by 1 us per task, so that
-- recovery keeps the order of the tasks.
-- include: check_schema clock outage_grace check_leases
-- KEYS[1] active   zset    ids by lease expiry
-- KEYS[2] owner    hash    id -> lease token
-- KEYS[3] cancels  hash    id -> retention us
-- KEYS[4] meta     hash    when a server was last seen
-- ARGV[1] now      int us  empty: the store's clock
-- ARGV[2] lease    int us
-- ARGV[3...] two values per task: id, token
-- returns one outcome per task: ok | cancelled (renewed, with a cancel request) | done | lost
check_schema()
local held, held_ids, replies = check_leases(ARGV, 3, 2)
if #held == 0 then
  return replies
end
local now, lease = clock(ARGV.now), tonumber(ARGV.lease)
local noted = redis.call('HMGET', KEYS.meta, 'seen', 'returned')
local cancels = {}
if redis.call('EXISTS', KEYS.cancels) == 1 then
  cancels = redis.call('HMGET', KEYS.cancels, unpack(held_ids))
end
local args = {}
for at, id in ipairs(held_ids) do
  args[2 * at - 1], args[2 * at] = to_text(now + lease + at - 1), id
end
redis.call('ZADD', KEYS.active, unpack(args))
outage_grace(now, lease, noted[1], noted[2])
for at, i in ipairs(held) do
  if cancels[at] then
    replies[i] = 'cancelled'
  end
end
return replies
