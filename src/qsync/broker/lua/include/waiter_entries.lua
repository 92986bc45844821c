-- waiter_entries: read and write the lists of tasks that wait for a limit. The state of the limit
-- lists the first of these tasks, and `waiters` lists the others. Each limited task is listed once,
-- under the first of its limits that refused it, or under `@<type>` while its type is paused. An
-- item is the order tag as 8 bytes, a zero byte if the task has several limits, and the id. An
-- entry of `waiters` is the limit, a zero byte and an item; all scores are 0, so entries are
-- ordered by bytes. An entry has no id if no other limited task has the same tag, since `limited`
-- then gives the id. If a limit has waiters in its state, `waiters` also has an entry of the limit
-- without an item, its marker.

-- Functions on items. `most` is the maximum number of items in the state of a limit, and `refill`
-- is the number that is moved there when none is left.
local waiter_items = { most = 16, refill = 8 }

-- Return an item; `ending` is the part that follows the tag. The 8 bytes of a tag sort like the
-- number: the sign bit of a positive number is set, and all bits of a negative number are inverted.
function waiter_items.new(tag, ending)
  tag = tonumber(tag)
  local tag_bytes = struct.pack('>d', tag < 0 and tag or -tag)
  if tag < 0 then
    tag_bytes = string.gsub(tag_bytes, '.', function(byte)
      return string.char(255 - string.byte(byte))
    end)
  end
  return ending == '' and tag_bytes or table.concat({ tag_bytes, ending })
end

-- Return whether the task of an item has several limits.
function waiter_items.has_several(item)
  return string.byte(item, 9) == 0
end

-- Return the id in an item; empty if it has none.
function waiter_items.id(item)
  return string.sub(item, string.byte(item, 9) == 0 and 10 or 9)
end

-- Return up to two of the limited tasks that have this tag.
local function limited_at(tag)
  return redis.call('ZRANGEBYSCORE', KEYS.limited, tag, tag, 'LIMIT', 0, 2)
end

-- Return the ids of the tasks that an item may represent: one id, unless the item is damaged.
local function ids_of(item)
  local tag_bytes = string.sub(item, 1, 8)
  if waiter_items.id(item) ~= '' or #tag_bytes < 8 then
    return { waiter_items.id(item) }
  end
  local sign = string.byte(tag_bytes) >= 128 and -1 or 1
  if sign == 1 then
    tag_bytes = string.gsub(tag_bytes, '.', function(byte)
      return string.char(255 - string.byte(byte))
    end)
  end
  local tag = struct.unpack('>d', tag_bytes)
  return tag == tag and limited_at(sign * tag) or {}
end

-- Return the numbers in a stored state, and its items as text.
function waiter_items.split_state(text)
  local stop = string.find(text, '\0', 1, true)
  return stop and string.sub(text, 1, stop - 1) or text, stop and string.sub(text, stop + 1) or ''
end

-- Return the items in a text, from this byte on, as a list. In the text, each item follows its
-- length.
function waiter_items.list(text, at)
  local items = {}
  while at <= #text do
    local size = string.byte(text, at)
    items[#items + 1] = string.sub(text, at + 1, at + size)
    at = at + 1 + size
  end
  return items
end

-- Return the items in the text form that a state has.
function waiter_items.text(items)
  local parts = {}
  for i = 1, #items do
    parts[2 * i - 1], parts[2 * i] = string.char(#items[i]), items[i]
  end
  return table.concat(parts)
end

-- Return whether an item comes after another one. The function compares bytes, as the store does,
-- because the `<` of Lua uses the locale.
function waiter_items.is_after(item, other)
  if #item < 8 or #other < 8 then
    return true -- damaged; it is removed when its turn comes
  end
  local high, low = struct.unpack('>I4I4', item)
  local other_high, other_low = struct.unpack('>I4I4', other)
  if high ~= other_high or low ~= other_low then
    return high > other_high or high == other_high and low > other_low
  end
  for at = 9, #item do
    local byte, other_byte = string.byte(item, at), string.byte(other, at) or -1
    if byte ~= other_byte then
      return byte > other_byte
    end
  end
  return false
end

-- Return the tag of the item at this byte of a text; nil unless it is positive.
function waiter_items.positive_tag(text, at)
  if #text >= at + 7 and string.byte(text, at) >= 128 then
    return -struct.unpack('>d', text, at)
  end
end

-- Find out how many items a state has, and the tag of the last item. A tag that is not positive is
-- returned as infinite, so that the caller compares items one by one.
function waiter_items.find_last(state)
  local items, at, count, last = state.items, state.from, 0, 0
  while at <= #items do
    count, last, at = count + 1, at, at + 1 + string.byte(items, at)
  end
  state.listed, state.last_tag = count, waiter_items.positive_tag(items, last + 1) or math.huge
end

-- Return the range of `waiters` that has the entries of a limit, without its marker.
function waiter_items.range(limit)
  return table.concat({ '(', limit, '\0' }), table.concat({ '(', limit, '\1' })
end

-- Return the number of tasks that wait for a limit; `items` is the text of the items in its state.
local function count_waiters(limit, items)
  return #waiter_items.list(items, 1) + redis.call('ZLEXCOUNT', KEYS.waiters, waiter_items.range(limit))
end

-- Add the id to the entry of a limited task, because another task now gets the same tag.
local function lengthen_entry(tag, id)
  local message = redis.call('HGET', KEYS.tasks, id)
  local limits = limits_of_message(message)
  local short = waiter_items.new(tag, #limits > 1 and '\0' or '')
  for _, limit in ipairs(limits) do
    local entry = table.concat({ limit, '\0', short })
    if redis.call('ZREM', KEYS.waiters, entry) == 1 then
      redis.call('ZADD', KEYS.waiters, 0, entry .. id)
    end
  end
end

-- Return the set of ids of those tasks that share their tag with a limited task; the argument
-- alternates tags and ids. Usually all limited tasks have lower tags, so one read is enough.
local function shared_tags(args)
  local lowest, highest, by_tag, shared = tonumber(args[1]), tonumber(args[1]), {}, {}
  by_tag[lowest] = args[2]
  for i = 3, #args, 2 do
    local tag, id = tonumber(args[i]), args[i + 1]
    local other = tag <= highest and by_tag[tag]
    by_tag[tag] = id
    if other then
      shared[id], shared[other] = true, true
    end
    if tag > highest then
      highest = tag
    elseif tag < lowest then
      lowest = tag
    end
  end
  if #redis.call('ZRANGEBYSCORE', KEYS.limited, lowest, highest, 'LIMIT', 0, 1) > 0 then
    for i = 1, #args, 2 do
      local others = limited_at(args[i])
      if #others == 1 then
        lengthen_entry(args[i], others[1])
      end
      shared[args[i + 1]] = shared[args[i + 1]] or #others > 0
    end
  end
  return shared
end

-- Add an item to the items of a limit. The item goes into the state, unless the state is full and
-- all its items come before this one. If the state becomes too long, its last item moves to an
-- entry of `waiters`. `short` is the item without an id, if it needs none. The function appends
-- arguments for ZADD to `entries`.
local function add_waiter(limit, item, short, entries)
  local state, count = touch_limit(limit), #entries
  state.waits = state.is_type
  if state.is_type or #item > 255 then
    entries[count + 1], entries[count + 2] = 0, table.concat({ limit, '\0', item })
    return
  end
  if not state.last_tag then
    waiter_items.find_last(state)
  end
  if state.listed == 0 and state.stored ~= 2 then
    entries[count + 1], entries[count + 2] = 0, table.concat({ limit, '\0' })
    count, state.stored = count + 2, 2
  end
  local tag = waiter_items.positive_tag(item, 1) or -math.huge
  local is_last = state.listed == 0 or tag > state.last_tag
  if is_last and (state.more or state.listed == waiter_items.most) then
    state.more = true
    entries[count + 1], entries[count + 2] = 0, table.concat({ limit, '\0', short })
  elseif is_last then
    local items = state.from > 1 and string.sub(state.items, state.from) or state.items
    state.items = table.concat({ items, string.char(#item), item })
    state.from, state.last_tag, state.listed = 1, tag, state.listed + 1
  else
    local items = waiter_items.list(state.items, state.from)
    local place = #items + 1
    while place > 1 and waiter_items.is_after(items[place - 1], item) do
      place = place - 1
    end
    if place > #items and state.more then
      entries[count + 1], entries[count + 2] = 0, table.concat({ limit, '\0', short })
      return
    end
    table.insert(items, place, item)
    if #items > waiter_items.most then
      state.more = true
      entries[count + 1], entries[count + 2] = 0, table.concat({ limit, '\0', table.remove(items) })
    end
    state.items, state.from, state.last_tag = waiter_items.text(items), 1, nil
  end
end

-- Put the items of the first entries of a limit into its state, if none is left there.
local function refill(limit, state)
  while state.from > #state.items and state.more do
    local from, to = waiter_items.range(limit)
    local entries =
      redis.call('ZRANGEBYLEX', KEYS.waiters, from, to, 'LIMIT', 0, waiter_items.refill + 1)
    if #entries > waiter_items.refill then
      table.remove(entries)
    else
      state.more = nil
    end
    local items = {}
    for i = 1, #entries do
      local item = string.sub(entries[i], #limit + 2)
      local id = #item < 256 and ids_of(item)[1]
      items[#items + 1] = id and (waiter_items.id(item) == '' and item .. id or item) or nil
    end
    if #entries > 0 then
      redis.call('ZREM', KEYS.waiters, unpack(entries))
    end
    state.items, state.from = waiter_items.text(items), 1
  end
end

-- Remove a task's item from the state of a limit. Returns the item, or nil if the state does not
-- have it.
local function remove_item(limit, state, id)
  local items, at = state.items, state.from
  while at <= #items do
    local stop = at + string.byte(items, at)
    local item = string.sub(items, at + 1, stop)
    if waiter_items.id(item) == id then
      state.items = string.sub(items, state.from, at - 1) .. string.sub(items, stop + 1)
      state.from, state.last_tag = 1, nil
      refill(limit, state)
      return item
    end
    at = stop + 1
  end
end
