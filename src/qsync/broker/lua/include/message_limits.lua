-- message_limits: read the limits of a task, the limit `@<type>` of its type, and its deadline from
-- its message.

local function is_type_limit(limit)
  return string.byte(limit) == 64
end

-- Return the limit `@<type>` of the type in a stored message; nil if the message is lost or damaged.
-- The type follows 11 bytes that the store adds and a nonce of 10 bytes.
local function type_limit(message)
  local kind, length, low = string.byte(message or '', 22, 24)
  local first, last = 23, 0
  if kind and kind >= 0xa0 and kind < 0xc0 then
    last = 22 + kind - 0xa0
  elseif kind == 0xd9 and length then
    first, last = 24, 23 + length
  elseif kind == 0xda and low then
    first, last = 25, 24 + 256 * length + low
  end
  return last >= first and table.concat({ '@', string.sub(message, first, last) }) or nil
end

-- Return the position after the msgpack value that begins at `at`: a text, bytes, a number or a
-- flag. (cmsgpack does not support bytes.)
local function after_element(message, at)
  local kind = string.byte(message, at)
  local first = kind >= 0xd9 and 0xd9 or 0xc4 -- kinds of texts and bytes, by bytes of their length
  if kind >= 0xa0 and kind < 0xc0 then
    return at + 1 + kind - 0xa0
  elseif kind >= 0xcc and kind <= 0xcf then
    return at + 1 + 2 ^ (kind - 0xcc)
  elseif kind >= first and kind <= first + 2 then
    local length, start = 0, at + 1 + 2 ^ (kind - first)
    for i = at + 1, start - 1 do
      length = length * 256 + string.byte(message, i)
    end
    return start + length
  end
  return at + 1
end

-- Return the options of a message, the last of its eight elements; fails if the message is lost or
-- damaged.
local function options_of_message(message)
  local at = 2
  for _ = 1, 7 do
    at = after_element(message, at)
  end
  return (cmsgpack.unpack(string.sub(message, at)))
end

-- Return the deadline in a message, in us. It is infinite if the message has no deadline, or is
-- lost or damaged.
local function deadline_of_message(message)
  local known, options = pcall(options_of_message, message)
  local deadline = known and type(options) == 'table' and options.dl
  return type(deadline) == 'number' and deadline or math.huge
end

-- Return the limits in a message; none if it is lost or damaged.
local function limits_of_message(message)
  local known, options = pcall(options_of_message, message)
  local limits = known and type(options) == 'table' and options.lm
  -- Ignore a list of invalid values. Otherwise, every script that reads the list would fail, which
  -- would stop the whole queue. qsync's clients never write such a list.
  for i, limit in pairs(type(limits) == 'table' and limits or {}) do
    if not (type(i) == 'number' and i >= 1 and i <= 4 and type(limit) == 'string'
      and #limit > 0 and not is_type_limit(limit) and not string.find(limit, '\0', 1, true)) then
      return {}
    end
  end
  return type(limits) == 'table' and limits or {}
end
