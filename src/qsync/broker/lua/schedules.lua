#!lua flags=no-writes
-- schedules: read the schedules of a queue, as servers published them.
-- include: schema clock
-- KEYS[1] schedules  hash    =<schedule> -> record, ><schedule> -> its task, @<schedule> -> time of
--                            publication, us; !<schedule> -> time, author and reason of its pause
-- KEYS[2] ticks      hash    schedule -> last tick enqueued, us
-- KEYS[3] meta       hash    schema
-- ARGV[1] now        int us  empty: the store's clock
-- ARGV[2] schedule   text    its name; empty: the first 1000 schedules, without their tasks
-- returns now us; and one row per schedule: name, record, time of publication, pause note, last tick,
--   its task
check_schema(KEYS[3])
local function row(id, task)
  local fields =
    redis.call('HMGET', KEYS[1], '=' .. id, '@' .. id, '!' .. id, task and '>' .. id or '')
  local tick = redis.call('HGET', KEYS[2], id)
  return { id, fields[1], fields[2], fields[3], tick, fields[4] }
end

local rows = {}
if ARGV[2] ~= '' then
  if redis.call('HEXISTS', KEYS[1], '=' .. ARGV[2]) == 1 then
    rows[1] = row(ARGV[2], true)
  end
else
  for _, name in ipairs(redis.call('HKEYS', KEYS[1])) do
    local id = string.match(name, '^=(.+)$')
    if id and #rows < 1000 then
      rows[#rows + 1] = row(id, false)
    end
  end
end
return { whole(clock(ARGV[1])), rows }
