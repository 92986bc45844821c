#!lua flags=no-writes
-- stored_schedules: read the stored schedules with these names.
-- include: check_schema clock
-- KEYS[1] stored_schedules hash  name -> time of the put (us, 8 bytes), then the record
-- KEYS[2] next_ticks       zset  schedules by next tick, us
-- KEYS[3] schedules        hash  !<schedule> -> time, author and reason of its pause
-- KEYS[4] meta             hash  schema
-- ARGV[1] now        int us  empty: the store's clock
-- ARGV[2...] names of schedules
-- returns now, us; and for each name an empty list, or a row: name, record, next tick, pause note
check_schema()
local rows = {}
for i = 2, #ARGV do
  local id = ARGV[i]
  local record = redis.call('HGET', KEYS.stored_schedules, id)
  rows[#rows + 1] = record and {
    id, record, redis.call('ZSCORE', KEYS.next_ticks, id), redis.call('HGET', KEYS.schedules, '!' .. id),
  } or {}
end
return { to_text(clock(ARGV.now)), rows }
