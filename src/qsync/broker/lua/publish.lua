#!lua flags=allow-oom
-- publish: store the schedules that a server has, for views and triggers.
-- include: schema clock
-- KEYS[1] schedules  hash    =<schedule> -> record, ><schedule> -> its task, @<schedule> -> time of
--                            publication, us; # -> start and last time, us, of the publications
--                            without a longer gap than `silence`
-- KEYS[2] meta       hash    schema
-- ARGV[1] now        int us  empty: the store's clock
-- ARGV[2] silence    int us  maximum gap between two publications
-- ARGV[3...] three values per schedule: name, record, and its task as `enqueue` takes one
-- returns 1
check_schema(KEYS[2])
local now = whole(clock(ARGV[1]))
local since, last = string.match(redis.call('HGET', KEYS[1], '#') or '', '^(%d+) (%d+)$')
for i = 3, #ARGV, 3 do
  local id = ARGV[i]
  redis.call('HSET', KEYS[1], '=' .. id, ARGV[i + 1], '>' .. id, ARGV[i + 2], '@' .. id, now)
end
if math.abs(tonumber(now) - digits(last, 0)) > tonumber(ARGV[2]) then
  since = now
end
redis.call('HSET', KEYS[1], '#', table.concat({ since, now }, ' '))
return 1
