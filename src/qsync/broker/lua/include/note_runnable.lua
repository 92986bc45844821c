-- note_runnable: store the time at which tasks became runnable; include/runnable_since.lua reads
-- it.

-- Store times; `args` alternates times and ids.
local function note_since(args)
  local fields = {}
  for i = 1, #args, 2 do
    fields[i], fields[i + 1] = args[i + 1], string.format('@%s', args[i])
  end
  if #fields > 0 then
    redis.pcall('HSET', KEYS.progress, unpack(fields))
  end
end

-- Store `now` for ids that became runnable.
local function note_runnable(now, ids)
  local args = {}
  for i, id in ipairs(ids) do
    args[2 * i - 1], args[2 * i] = to_text(now), id
  end
  note_since(args)
end

-- Delete the stored times of tasks that have ended but are kept. The same hash may hold a task's
-- progress instead; progress is not deleted.
local function forget_since(ids)
  local gone = {}
  for i, text in ipairs(read_since(ids)) do
    if text and string.sub(text, 1, 1) == '@' then
      gone[#gone + 1] = ids[i]
    end
  end
  if #gone > 0 then
    redis.pcall('HDEL', KEYS.progress, unpack(gone))
  end
end
