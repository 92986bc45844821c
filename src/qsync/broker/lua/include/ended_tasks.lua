-- ended_tasks: collect tasks that end, and publish that they have ended after all writes. If the
-- ACL forbids publishing, a client that waits for a result finds it when it polls.

local ended = {}

local function note_ended(ids)
  for _, id in ipairs(ids) do
    ended[#ended + 1] = id
  end
end

local function publish_ended()
  for _, id in ipairs(ended) do
    redis.pcall('SPUBLISH', KEYS.done, id)
  end
end
