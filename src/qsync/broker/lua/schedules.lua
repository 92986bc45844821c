#!lua flags=no-writes
-- schedules: read the schedules of a queue, as servers published them.
-- include: check_schema clock
-- KEYS[1] schedules  hash    =<schedule> -> record, ><schedule> -> its task, @<schedule> -> time of
--                            publication, us; !<schedule> -> time, author and reason of its pause
-- KEYS[2] ticks      hash    schedule -> last tick enqueued, us
-- KEYS[3] meta       hash    schema
-- ARGV[1] now        int us  empty: the store's clock
-- ARGV[2] schedule   text    its name; empty: the first 1000 schedules, without their tasks
-- returns now us; and one row per schedule: name, record, time of publication, pause note, last
--   tick, its task
check_schema()
local function row(id, task)
  local fields =
    redis.call('HMGET', KEYS.schedules, '=' .. id, '@' .. id, '!' .. id, task and '>' .. id or '')
  local tick = redis.call('HGET', KEYS.ticks, id)
  return { id, fields[1], fields[2], fields[3], tick, fields[4] }
end

local rows = {}
if ARGV.schedule ~= '' then
  if redis.call('HEXISTS', KEYS.schedules, '=' .. ARGV.schedule) == 1 then
    rows[1] = row(ARGV.schedule, true)
  end
else
  for _, name in ipairs(redis.call('HKEYS', KEYS.schedules)) do
    local id = string.match(name, '^=(.+)$')
    if id and #rows < 1000 then
      rows[#rows + 1] = row(id, false)
    end
  end
end
return { to_text(clock(ARGV.now)), rows }
