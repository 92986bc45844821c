#!lua flags=no-writes
-- last_runs: read the last success and the last failure of a queue's schedules.
-- include: check_schema
-- KEYS[1] schedule_runs hash  schedule -> its last runs, ! -> missed ticks
-- KEYS[2] meta       hash    schema
-- ARGV[1] count      int     maximum number of schedules to read
-- returns three values per schedule: its field; the notes on its last completed run and on its last
-- failed or missed run, each empty if none is among the last 20
check_schema()

-- Number of bytes that are read from the end of a record; 20 runs take less. A pattern without a
-- match is tried at every position, so a long, damaged record would block the store.
local most = 2048

local count, cursor, rows = tonumber(ARGV.count), '0', {}
for _ = 1, 10 do
  local part = redis.call('HSCAN', KEYS.schedule_runs, cursor, 'COUNT', count)
  for i = 1, #part[2], 2 do
    local field, runs = part[2][i], table.concat({ ' ', string.sub(part[2][i + 1], -most) })
    if field ~= '!' and #rows < 3 * count then
      rows[#rows + 1] = field
      rows[#rows + 1] = string.match(runs, '^.* (%d+%uc%-?%d+,%d+)') or ''
      rows[#rows + 1] = string.match(runs, '^.* (%d+%u[fm]%-?%d+,?%d*)') or ''
    end
  end
  cursor = part[1]
  if cursor == '0' or #rows >= 3 * count then
    break
  end
end
return rows
