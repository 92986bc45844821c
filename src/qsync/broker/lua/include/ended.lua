-- ended: tasks whose end is published, when all is written. A user who may not publish still ends
-- tasks: then a client that waits for a result sees it when it looks again.

local ended = {}

local function note_ended(ids)
  for _, id in ipairs(ids) do
    ended[#ended + 1] = id
  end
end

local function publish_ended(done_key)
  for _, id in ipairs(ended) do
    redis.pcall('SPUBLISH', done_key, id)
  end
end
