-- id: what may be a task id.

-- Only what enqueue stored is one; anything else that got into a set is dropped when it is met.
local function is_id(member)
  return #member <= 128 and string.find(member, '^[!-~]+$') ~= nil
end
