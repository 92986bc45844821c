#!lua flags=allow-oom
-- publish_schedules: store the schedules of a server, so that clients can show and trigger them. A
-- schedule that was published a moment ago is not written again, so many servers cost no more than
-- one server.
-- include: check_schema clock
-- KEYS[1] schedules  hash    =<schedule> -> record, ><schedule> -> its task, @<schedule> -> time of
--                            publication, us; # -> start and last time, us, of the publications
--                            without a longer gap than `silence`
-- KEYS[2] meta       hash    schema
-- ARGV[1] now        int us  empty: the store's clock
-- ARGV[2] silence    int us  maximum gap between two publications
-- ARGV[3...] three values per schedule: name, record, and its task in the form of `enqueue`
-- returns 1
check_schema()
local now, silence = clock(ARGV.now), tonumber(ARGV.silence)
local since, last = string.match(redis.call('HGET', KEYS.schedules, '#') or '', '^(%d+) (%d+)$')

-- Return whether a time of publication is missing, over 30 s old, or in the future.
local function is_old(at)
  local age = now - parse_int(at, -silence)
  return age > silence / 6 or age < 0
end

for i = 3, #ARGV, 3 do
  local id, record, task = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  local held = redis.call('HMGET', KEYS.schedules, '=' .. id, '>' .. id, '@' .. id)
  if held[1] ~= record or held[2] ~= task or is_old(held[3]) then
    redis.call('HSET', KEYS.schedules, '=' .. id, record, '>' .. id, task, '@' .. id, to_text(now))
  end
end
if math.abs(now - parse_int(last, 0)) > silence then
  since = to_text(now)
end
if is_old(last) then
  redis.call('HSET', KEYS.schedules, '#', table.concat({ since, to_text(now) }, ' '))
end
return 1
