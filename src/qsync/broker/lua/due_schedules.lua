#!lua flags=no-writes
-- due_schedules: read the stored schedules whose next tick has come, the earliest first.
-- include: check_schema clock
-- KEYS[1] stored_schedules hash  name -> time of the put (us, 8 bytes), then the record
-- KEYS[2] next_ticks       zset  schedules by next tick, us
-- KEYS[3] meta             hash  schema, ticked
-- ARGV[1] now        int us  empty: the store's clock
-- ARGV[2] count      int     maximum number of schedules
-- ARGV[3] offset     int     number of due schedules to skip, the earliest first
-- REPLY[1] now    int   us
-- REPLY[2] later  text  next tick of the other schedules, us; empty: there is none
-- REPLY[3] wrong  flag  whether next ticks may be wrong, as the clock was ahead at the last ticks
-- REPLY[4] rows   list  three values per schedule: name, next tick, record (nil when it is lost)
check_schema()
local now = clock(ARGV.now)
local due = redis.call(
  'ZRANGEBYSCORE', KEYS.next_ticks, '-inf', to_text(now), 'WITHSCORES', 'LIMIT', tonumber(ARGV.offset),
  tonumber(ARGV.count)
)
local later =
  redis.call('ZRANGEBYSCORE', KEYS.next_ticks, '(' .. to_text(now), '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
local rows = {}
for i = 1, #due, 2 do
  rows[#rows + 1] = due[i]
  rows[#rows + 1] = to_text(tonumber(due[i + 1]))
  rows[#rows + 1] = redis.call('HGET', KEYS.stored_schedules, due[i])
end
local ticked = parse_int(redis.call('HGET', KEYS.meta, 'ticked'), 0)
return reply({
  now = to_text(now), later = later[2] and to_text(tonumber(later[2])),
  wrong = is_of_wrong_clock(ticked, now), rows = rows,
})
