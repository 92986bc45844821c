-- record_event: record the actions of operators. No task depends on the record, so a command that
-- fails, e.g. without permission, is ignored.

-- Return the id and the fields of a recent entry with this key and record; nil if there is none.
local function recent_event(key, record)
  for _, entry in ipairs(redis.pcall('XREVRANGE', KEYS.events, '+', '-', 'COUNT', 8)) do
    local fields = {}
    for i = 1, #entry[2], 2 do
      fields[entry[2][i]] = entry[2][i + 1]
    end
    if fields.key == key and fields.record == record then
      return entry[1], fields
    end
  end
end

-- If the call repeats an earlier call, return the time of the earlier call in us, else nil.
local function first_event(event)
  if event ~= '' then
    local _, fields = recent_event(string.sub(event, 2, 9), string.sub(event, 10))
    return fields and parse_int(fields.at)
  end
end

-- Record an action that changed `number` things; 0 means that it changed nothing. `event` is empty,
-- or it consists of `+` or `-`, a key of 8 bytes, and a record that is opaque to the scripts. A
-- repeated call with `-` is recorded once; calls with `+` and the same key are steps of one action,
-- and their numbers are added up. `ids` are the ids of the tasks; they are kept only while all of
-- them fit.
-- Returns the number that the script should reply. For a repeated call with `-`, it is the number
-- of the first call, otherwise `number`.
local function record_event(now, event, number, ids)
  local is_step = string.sub(event, 1, 1) == '+'
  if event == '' or is_step and number == 0 then
    return number
  end
  local key, record = string.sub(event, 2, 9), string.sub(event, 10)
  local entry, before = recent_event(key, record)
  local at, names = to_text(now), table.concat(ids, ' ')
  if before and not is_step then
    return parse_int(before.number, number)
  elseif number == 0 then
    return 0
  end
  local changed = number
  if before then
    at, number = before.at or at, number + parse_int(before.number, 0)
    names = (before.ids or '') == '' and '' or table.concat({ before.ids, names }, ' ')
  end
  local added = redis.pcall(
    'XADD', KEYS.events, 'MAXLEN', 500, '*', 'at', at, 'number', to_text(number), 'ids',
    #names <= 1024 and names or '', 'key', key, 'record', record
  )
  if entry and type(added) == 'string' then
    redis.pcall('XDEL', KEYS.events, entry)
  end
  return changed
end
