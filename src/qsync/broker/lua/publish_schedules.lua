#!lua flags=allow-oom
-- publish_schedules: store the schedules that a server has, for views and triggers.
-- include: check_schema clock
-- KEYS[1] schedules  hash    =<schedule> -> record, ><schedule> -> its task, @<schedule> -> time of
--                            publication, us; # -> start and last time, us, of the publications
--                            without a longer gap than `silence`
-- KEYS[2] meta       hash    schema
-- ARGV[1] now        int us  empty: the store's clock
-- ARGV[2] silence    int us  maximum gap between two publications
-- ARGV[3...] three values per schedule: name, record, and its task as `enqueue` takes one
-- returns 1
check_schema()
local now = to_text(clock(ARGV.now))
local since, last = string.match(redis.call('HGET', KEYS.schedules, '#') or '', '^(%d+) (%d+)$')
for i = 3, #ARGV, 3 do
  local id = ARGV[i]
  redis.call('HSET', KEYS.schedules, '=' .. id, ARGV[i + 1], '>' .. id, ARGV[i + 2], '@' .. id, now)
end
if math.abs(tonumber(now) - parse_int(last, 0)) > tonumber(ARGV.silence) then
  since = now
end
redis.call('HSET', KEYS.schedules, '#', table.concat({ since, now }, ' '))
return 1
