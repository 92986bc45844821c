-- failure_marks: read the marks at the ends of failure records, and count failures by mark. A mark
-- is a fairness key, its length in bytes as 4 hex digits, and a fingerprint of 8 hex digits.
-- Records of older versions have no marks.

local function new_error_counts()
  return { order = {}, by_error = {}, by_mark = {}, lengths = {} }
end

-- Return the length of a mark and its header, read from the last 12 characters of the mark. Return
-- 0 if these characters are not the end of a mark.
local function mark_length(tail)
  if not string.find(tail, '^%x%x%x%x%x%x%x%x%x%x%x%x$') then
    return 0
  end
  local length = 12 + tonumber(string.sub(tail, 1, 4), 16)
  return length + (length < 32 and 1 or length < 256 and 2 or 3)
end

-- Return the mark in this text, which begins with the mark's header, and add its error to the
-- counts. Return false if the header does not match the mark.
local function parse_mark(counts, text)
  local head = #text < 33 and 1 or #text < 258 and 2 or 3
  local length = #text - head
  local expected = head == 1 and string.char(160 + length) or head == 2 and string.char(217, length)
    or string.char(218, math.floor(length / 256), length % 256)
  if string.sub(text, 1, head) ~= expected then
    return false
  end
  local fingerprint = string.sub(text, -8)
  local entry = counts.by_error[fingerprint]
  if not entry then
    entry = { fingerprint = fingerprint, number = 0, sample = {}, keys = {}, names = {} }
    counts.by_error[fingerprint] = entry
    counts.order[#counts.order + 1] = entry
  end
  return { entry = entry, key = string.sub(text, head + 1, -13) }
end

-- Return the mark of a record, after adding its error to the counts; false if the record has no
-- mark.
local function read_mark(counts, record)
  local tail = record and string.sub(record, -12) or ''
  local length = counts.lengths[tail]
  if not length then
    length = mark_length(tail)
    counts.lengths[tail] = length
  end
  if length == 0 then
    return false
  end
  local text = string.sub(record, -length)
  local mark = counts.by_mark[text]
  if mark == nil then
    mark = parse_mark(counts, text)
    counts.by_mark[text] = mark
  end
  return mark
end

-- Return the time in a failure record, which is its third field; 0 if the record cannot be read.
local function failed_at(record)
  local good, _, _, _, at = pcall(cmsgpack.unpack_limit, record, 3, 1)
  return good and tonumber(at) or 0
end

-- Return whether a task is dead because servers crashed; its record then describes an earlier
-- error.
local function died_of_crashes(crashes)
  return crashes and string.sub(crashes, -1) == '!'
end

-- Count a task with this mark. At most 10 fairness keys of an error are counted by name; all
-- further keys are counted under the empty name. `at` is the time of the failure. If the tasks are
-- read from the latest to the oldest, `at` is the task's id instead, and read_times looks up the
-- times later.
local function count_failure(mark, at)
  local entry, key = mark.entry, mark.key
  entry.number = entry.number + 1
  if type(at) == 'string' then
    entry.last, entry.first = entry.last or at, at
  else
    entry.last, entry.first = math.max(entry.last or at, at), math.min(entry.first or at, at)
  end
  if key ~= '' then
    if not entry.keys[key] then
      key = #entry.names < 10 and key or ''
      if not entry.keys[key] then
        entry.keys[key] = 0
        entry.names[#entry.names + 1] = key
      end
    end
    entry.keys[key] = entry.keys[key] + 1
  end
end

-- Replace the ids in the counts with the scores of these ids.
local function read_times(counts, set_key)
  for _, entry in ipairs(counts.order) do
    if entry.number > 0 then
      entry.last = tonumber(redis.call('ZSCORE', set_key, entry.last))
      entry.first = tonumber(redis.call('ZSCORE', set_key, entry.first))
    end
  end
end

-- Return the counts as a list of lists.
local function list_error_counts(counts)
  local rows = {}
  for _, entry in ipairs(counts.order) do
    local keys = {}
    for _, name in ipairs(entry.names) do
      keys[#keys + 1] = name
      keys[#keys + 1] = entry.keys[name]
    end
    -- The number is 0 if the script stopped at the first task with this error, without counting it.
    if entry.number > 0 then
      rows[#rows + 1] = {
        entry.fingerprint, entry.number, entry.first, entry.last, keys, entry.sample,
      }
    end
  end
  return rows
end
