-- crash_counts: read and change crash counts, which tell how often a server died while it held a
-- task. A count is `<n>` or `<n>~<m>`, followed by a sign. Besides the `n` crashes, `m` crashes did
-- not count, since another suspect may have been the cause. Signs: `+` the task runs, and a crash
-- counts; `-` the task runs with other suspects, and a crash does not count; `!` the task became
-- dead because of its crashes.

-- Maximum number of crashes that do not count.
local SPARED_MOST = 3

local function crash_count(text)
  return parse_int(string.match(text or '', '^%d+'), 0)
end

-- Return the number of crashes that did not count.
local function spared_count(text)
  return parse_int(string.match(text or '', '^%d+~(%d+)'), 0)
end

local function crash_text(crashes, spared, sign)
  return table.concat({ to_text(crashes), spared > 0 and '~' .. to_text(spared) or '', sign })
end

-- Return the crash count `text` with its sign replaced by `sign`.
local function signed(text, sign)
  return crash_text(crash_count(text), spared_count(text), sign)
end

-- Remove the signs. The server is still running, so these tasks did not crash it.
local function remove_crash_signs(ids)
  if #ids == 0 or redis.call('EXISTS', KEYS.crashes) == 0 then
    return
  end
  local counts = redis.call('HMGET', KEYS.crashes, unpack(ids))
  for i, id in ipairs(ids) do
    if counts[i] and string.find(counts[i], '[+-]$') then
      redis.call('HSET', KEYS.crashes, id, signed(counts[i], ''))
    end
  end
end
