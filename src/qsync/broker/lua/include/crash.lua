-- crash: how often a server died with a task: `<n>`, `<n>+` while it runs marked, `<n>!` when it
-- died of it.

local function crash_count(text)
  return digits(string.match(text or '', '^%d+'), 0)
end

-- Take the marks off: the server lived to tell, so these tasks did not crash it.
local function unmark(crashes_key, ids)
  if #ids == 0 or redis.call('EXISTS', crashes_key) == 0 then
    return
  end
  local counts = redis.call('HMGET', crashes_key, unpack(ids))
  for i, id in ipairs(ids) do
    if counts[i] and string.sub(counts[i], -1) == '+' then
      redis.call('HSET', crashes_key, id, whole(crash_count(counts[i])))
    end
  end
end
