#!lua flags=allow-oom
-- begin_ticks: the last ticks of schedules; one never seen before begins now, so that it owes
-- nothing for the time before.
-- include: schema clock
-- KEYS[1] ticks   hash    schedule -> last tick enqueued, us
-- KEYS[2] meta    hash    schema
-- ARGV[1] now     int us  empty: the store's clock
-- ARGV[2...] names of schedules
-- returns now, then the last tick of each schedule, us
check_schema(KEYS[2])
local now = whole(clock(ARGV[1]))
local replies = { now }
for i = 2, #ARGV do
  local last = redis.call('HGET', KEYS[1], ARGV[i])
  if not digits(last) then
    last = now
    redis.call('HSET', KEYS[1], ARGV[i], now)
  end
  replies[i] = last
end
return replies
