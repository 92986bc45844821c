-- crash: how often a server died with a task, as `<n>` or `<n>~<m>` and a sign. `m` crashes did not
-- count, since another suspect may have been the cause. Signs: `+` it runs, and a crash counts for it;
-- `-` it runs beside other suspects, and a crash does not count; `!` it died of its crashes.

-- So many crashes do not count; from then on each does.
local SPARED_MOST = 3

local function crash_count(text)
  return digits(string.match(text or '', '^%d+'), 0)
end

-- How many crashes did not count for it.
local function spared_count(text)
  return digits(string.match(text or '', '^%d+~(%d+)'), 0)
end

local function crash_text(crashes, spared, sign)
  return table.concat({ whole(crashes), spared > 0 and '~' .. whole(spared) or '', sign })
end

-- The text with another sign.
local function signed(text, sign)
  return crash_text(crash_count(text), spared_count(text), sign)
end

-- Take the signs off: the server lived to tell, so these tasks did not crash it.
local function unmark(crashes_key, ids)
  if #ids == 0 or redis.call('EXISTS', crashes_key) == 0 then
    return
  end
  local counts = redis.call('HMGET', crashes_key, unpack(ids))
  for i, id in ipairs(ids) do
    if counts[i] and string.find(counts[i], '[+-]$') then
      redis.call('HSET', crashes_key, id, signed(counts[i], ''))
    end
  end
end
