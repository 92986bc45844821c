#!lua flags=no-writes
-- stored_page: read a page of the stored schedules. Without a cursor, the page has the schedules
-- with the earliest next ticks. With a cursor, it has the next part of all schedules. A schedule
-- that exists from the first call to the last is in at least one part.
-- include: check_schema clock
-- KEYS[1] stored_schedules hash  name -> time of the put (us, 8 bytes), then the record
-- KEYS[2] next_ticks       zset  schedules by next tick, us
-- KEYS[3] schedules        hash  !<schedule> -> time, author and reason of its pause
-- KEYS[4] meta             hash  schema
-- ARGV[1] now        int us  empty: the store's clock
-- ARGV[2] cursor     text    empty: the first schedules by next tick; else '0' at first, then the
--                            cursor that the last call returned
-- ARGV[3] count      int     approximate number of schedules
-- ARGV[4] prefix     text    prefix of the names, without special characters of patterns
-- REPLY[1] now     int   us
-- REPLY[2] cursor  text  of the next part; '0' after the last one
-- REPLY[3] total   int   number of all schedules
-- REPLY[4] rows    list  per schedule: name, record, next tick, pause note
check_schema()
local cursor, found = '0', {}
if ARGV.cursor == '' then
  for _, id in ipairs(redis.call('ZRANGE', KEYS.next_ticks, 0, tonumber(ARGV.count) - 1)) do
    found[#found + 1] = id
    found[#found + 1] = redis.call('HGET', KEYS.stored_schedules, id)
  end
else
  local reply = redis.call('HSCAN', KEYS.stored_schedules, ARGV.cursor, 'MATCH', ARGV.prefix .. '*', 'COUNT', ARGV.count)
  cursor, found = reply[1], reply[2]
end
local rows = {}
for i = 1, #found, 2 do
  local id = found[i]
  if found[i + 1] then
    rows[#rows + 1] = {
      id, found[i + 1], redis.call('ZSCORE', KEYS.next_ticks, id), redis.call('HGET', KEYS.schedules, '!' .. id),
    }
  end
end
return reply({
  now = to_text(clock(ARGV.now)), cursor = cursor, total = redis.call('ZCARD', KEYS.next_ticks),
  rows = rows,
})
