-- successors: write and read the next runs of active tasks that were replaced. A record is
-- `<due us> <length of the member> <member><message>`.

local function successor_record(due, member, message)
  return table.concat({ to_text(due), ' ', #member, ' ', member, message })
end

-- Return the due time (as text), the member and the message of a record; nothing if it is not
-- valid.
local function read_successor(record)
  local due, size, rest = string.match(record or '', '^(%d+) (%d+) (.+)$')
  size = parse_int(size)
  if size and #rest > size then
    return due, string.sub(rest, 1, size), string.sub(rest, size + 1)
  end
end
