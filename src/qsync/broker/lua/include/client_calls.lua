-- client_calls: record the last cancel or reschedule of each sender. If the reply was lost and the
-- sender repeats the call, the sender gets the same reply. As with enqueues, a sender numbers its
-- calls and has one in flight at a time; the record is `<number> <time us>`. No task depends on the
-- record, so a command that fails is ignored.

-- If this call was made before, return the time of the first call in us, else nil.
local function first_call(sender, number)
  local last = sender ~= '' and redis.pcall('HGET', KEYS.calls, sender)
  if type(last) == 'string' then
    local last_number, at = string.match(last, '^(%d+) (%d+)$')
    return last_number == number and parse_int(at) or nil
  end
end

local function note_call(now, sender, number)
  if sender ~= '' then
    redis.pcall('HSET', KEYS.calls, sender, table.concat({ number, to_text(now) }, ' '))
  end
end
