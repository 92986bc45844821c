-- stored_records: make the time stamps of stored schedules, and find programs' periodic tasks with
-- the same names. A record in `stored_schedules` begins with the time at which it was put, in 8
-- bytes. The rest of a record is opaque to the scripts. The time changes with each put and each
-- resume, so a script that compares it acts on one version only.

-- Return the first 8 bytes of a new record: the time, or 1 us later if the record `before` has that
-- time.
local function record_stamp(now, before)
  local stamp = struct.pack('>I8', now)
  if before and string.sub(before, 1, 8) == stamp then
    return struct.pack('>I8', now + 1)
  end
  return stamp
end

-- Return the published record of a periodic task if it is less than `silence` us old, else nil.
local function published_lately(now, silence, id)
  local found = redis.call('HMGET', KEYS.schedules, '=' .. id, '@' .. id)
  if found[1] and now - parse_int(found[2], 0) < silence then
    return found[1]
  end
end
