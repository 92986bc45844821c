#!lua flags=no-writes
-- sample_keys: read the fairness keys of pending tasks, one at a random position in each of `count`
-- equal parts. The positions are random, since evenly spaced ones could miss some of the keys if
-- the keys alternate.
-- include: check_schema
-- KEYS[1] pending  zset    ids by order tag
-- KEYS[2] keys     hash    id -> member
-- KEYS[3] meta     hash    schema
-- ARGV[1] count    int     number of tasks to read, 1 to 500
-- returns the number of pending tasks; and the member of each task that was read, empty for none
check_schema()
local pending = redis.call('ZCARD', KEYS.pending)
local count = math.min(tonumber(ARGV.count), pending)
local ids = {}
for i = 1, count do
  local rank = math.floor((i - 1 + math.random()) * pending / count)
  ids[i] = redis.call('ZRANGE', KEYS.pending, rank, rank)[1]
end
local members = {}
if count > 0 then
  members = redis.call('HMGET', KEYS.keys, unpack(ids))
end
for i = 1, count do
  members[i] = members[i] or ''
end
return { pending, members }
