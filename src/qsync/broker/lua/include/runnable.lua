-- runnable: store the time at which tasks became runnable; include/since.lua reads it.

-- Store times; `args` holds time and id in turn.
local function note_since(progress_key, args)
  local fields = {}
  for i = 1, #args, 2 do
    fields[i], fields[i + 1] = args[i + 1], string.format('@%s', args[i])
  end
  if #fields > 0 then
    redis.pcall('HSET', progress_key, unpack(fields))
  end
end

-- Store `now` for ids that became runnable.
local function note_runnable(progress_key, now, ids)
  local args = {}
  for i, id in ipairs(ids) do
    args[2 * i - 1], args[2 * i] = whole(now), id
  end
  note_since(progress_key, args)
end

-- Delete the times of tasks that end and are kept; their progress in the same hash stays.
local function forget_since(progress_key, ids)
  local gone = {}
  for i, text in ipairs(read_since(progress_key, ids)) do
    if text and string.sub(text, 1, 1) == '@' then
      gone[#gone + 1] = ids[i]
    end
  end
  if #gone > 0 then
    redis.pcall('HDEL', progress_key, unpack(gone))
  end
end
