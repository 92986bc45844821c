-- replay_fetch: answer a repeated fetch with the tasks that its token still owns.

-- `batch` is the text of the ids that the first call leased.
local function replay_fetch(batch, token)
  local leased, ids, messages = {}, {}, {}
  for id in string.gmatch(batch, '%S+') do
    leased[#leased + 1] = id
  end
  local owners, bodies = fields_of(KEYS.owner, leased), fields_of(KEYS.tasks, leased)
  for i, id in ipairs(leased) do
    if owners[i] == token and bodies[i] then
      ids[#ids + 1] = id
      messages[#messages + 1] = bodies[i]
    end
  end
  return ids, messages
end
