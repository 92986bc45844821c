#!lua
-- note_runs: record how runs of schedules were created and how they ended, and which ticks were
-- missed. A later note about a tick replaces the earlier note, but keeps how the tick was created.
-- The last 20 noted ticks of each schedule are kept, and the last 5 missed ticks of the queue.
-- include: check_schema preconditions
-- KEYS[1] schedule_runs hash  schedule -> its last runs, ! -> missed ticks
-- KEYS[2] schedules  hash    !<schedule> while it is paused
-- KEYS[3] meta       hash    schema
-- ARGV[1...] five values per run: field of the schedule; its tick, ms; how it was created: T tick,
--   M by hand, B backfill, empty: as noted before; its outcome; and the schedule if it was missed
-- returns the number of noted runs
check_schema()
check_hash(KEYS.schedules)
check_rights(KEYS.schedule_runs, { 'HGET', 'HSET', 'HDEL' })

-- Return at most the last 2,048 bytes of a record, since a damaged record may be longer.
local function noted_runs(field)
  return string.sub(redis.call('HGET', KEYS.schedule_runs, field) or '', -2048)
end

-- Add an entry, if any, to a field, and keep the field's last `most` entries. The new entry
-- replaces the entry that `is_same` finds.
local function keep(field, entry, most, is_same)
  local kept = {}
  for other in string.gmatch(noted_runs(field), '[^ ]+') do
    if not is_same(other) then
      kept[#kept + 1] = other
    end
  end
  if entry then
    kept[#kept + 1] = entry
  end
  while #kept > most do
    table.remove(kept, 1)
  end
  if #kept > 0 then
    redis.call('HSET', KEYS.schedule_runs, field, table.concat(kept, ' '))
  else
    redis.call('HDEL', KEYS.schedule_runs, field)
  end
end

-- Record whether a schedule has missed its last tick.
local function note_missed(field, tick, was_missed)
  local prefix = table.concat({ field, '@' })
  keep('!', was_missed and table.concat({ prefix, tick }), 5, function(other)
    return string.sub(other, 1, #prefix) == prefix
  end)
end

local noted = 0
for i = 1, #ARGV, 5 do
  local field, tick, how, what = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3]
  local schedule = ARGV[i + 4]
  local was_missed = schedule ~= ''
  if not was_missed or redis.call('HEXISTS', KEYS.schedules, table.concat({ '!', schedule })) == 0 then
    local before = string.match(
      table.concat({ ' ', noted_runs(field) }), table.concat({ ' ', tick, '(%u[^ ]*)' })
    )
    local known = before and string.sub(before, 2) or '-'
    if how == '' then
      how = before and string.sub(before, 1, 1) or 'T'
    end
    if known ~= '-' and (what == '-' or was_missed) then
      what = known
      was_missed = was_missed and string.sub(known, 1, 1) == 'm'
    end
    keep(field, table.concat({ tick, how, what }), 20, function(other)
      return string.match(other, '^%d+') == tick
    end)
    note_missed(field, tick, was_missed)
    noted = noted + 1
  end
end
return noted
