#!lua flags=no-writes
-- audit: scan a part of a key, and find where each id in it is recorded.
-- include: check_schema message_limits
-- KEYS[1] tasks      hash    id -> message
-- KEYS[2] pending    zset    ids by order tag
-- KEYS[3] scheduled  zset    ids by due time
-- KEYS[4] active     zset    ids by lease expiry
-- KEYS[5] retry      zset    ids by due time
-- KEYS[6] completed  zset    ids by end of retention
-- KEYS[7] dead       zset    ids by time of death
-- KEYS[8] owner      hash    id -> lease token
-- KEYS[9] crashes    hash    id -> crash count
-- KEYS[10] failures  hash    id -> failure record
-- KEYS[11] results   hash    id -> result record
-- KEYS[12] keys      hash    id -> fairness key
-- KEYS[13] cancels   hash    id -> retention us
-- KEYS[14] progress  hash    id -> done/total, or @<us> at which it became runnable
-- KEYS[15] unique    hash    locks
-- KEYS[16] meta      hash    schema
-- KEYS[17] limited   zset    ids by order tag
-- KEYS[18] holds     hash    id -> its limits, of unfinished tasks
-- KEYS[19] successors hash   id -> due us, member and message of its next run
-- ARGV[1] source     text    name of the key to scan; empty: look up the given ids
-- ARGV[2] cursor     text    0 at first, then the cursor that the last call returned
-- ARGV[3] count      int     approximate number of entries to scan
-- ARGV[4...] two values per task: id, and the lock that names it as its holder, or empty
-- returns the next cursor, 0 at the end; and one row per id: id; its states, separated by spaces;
--   the hashes that have it, separated by spaces, and `unheld` when it lacks its limits; its lock;
--   the id that holds that lock; the lock that names this id; its message if that lock is not its own
check_schema()
local ids, claims, cursor = {}, {}, '0'

-- Return the holder from the value of a lock. (This script does not use include/unique_locks.lua,
-- which has commands that write.)
local function named_holder(held)
  return string.match(held or '', '^%d+:(.+)$')
end

local function add_row(id, claim)
  ids[#ids + 1], claims[#claims + 1] = id, claim
end

-- Scan the field names of a hash. Values may be large, so if the store does not have NOVALUES, only
-- a few entries are scanned per call.
local function scan_names(hash_key)
  local part = redis.pcall('HSCAN', hash_key, ARGV.cursor, 'COUNT', ARGV.count, 'NOVALUES')
  local step = 1
  if part.err then
    part, step = redis.call('HSCAN', hash_key, ARGV.cursor, 'COUNT', '10'), 2
  end
  cursor = part[1]
  for i = 1, #part[2], step do
    add_row(part[2][i], '')
  end
end

local function scan_set(set_key)
  local part = redis.call('ZSCAN', set_key, ARGV.cursor, 'COUNT', ARGV.count)
  cursor = part[1]
  for i = 1, #part[2], 2 do
    add_row(part[2][i], '')
  end
end

local function scan_locks()
  local part = redis.call('HSCAN', KEYS.unique, ARGV.cursor, 'COUNT', ARGV.count)
  cursor = part[1]
  for i = 1, #part[2], 2 do
    local kind, name = string.match(part[2][i], '^([=@])(.*)$')
    local holder = named_holder(part[2][i + 1])
    if kind == '@' then
      add_row(name, '')
    elseif kind == '=' and holder then
      add_row(holder, name)
    elseif not kind then
      add_row('', part[2][i])
    end
  end
end

local hash = ({
  tasks = KEYS.tasks, owner = KEYS.owner, crashes = KEYS.crashes, failures = KEYS.failures,
  results = KEYS.results, keys = KEYS.keys, cancels = KEYS.cancels, progress = KEYS.progress,
  successors = KEYS.successors, holds = KEYS.holds,
})[ARGV.source]
local set = ({
  pending = KEYS.pending, scheduled = KEYS.scheduled, active = KEYS.active, retry = KEYS.retry,
  completed = KEYS.completed, dead = KEYS.dead, limited = KEYS.limited,
})[ARGV.source]
if hash then
  scan_names(hash)
elseif set then
  scan_set(set)
elseif ARGV.source == 'unique' then
  scan_locks()
else
  for i = 4, #ARGV, 2 do
    add_row(ARGV[i], ARGV[i + 1])
  end
end

local state_names = { 'pending', 'scheduled', 'active', 'retry', 'completed', 'dead', 'limited' }
local hash_names = {
  'tasks', 'owner', 'crashes', 'failures', 'results', 'keys', 'cancels', 'progress', 'successors',
  'holds',
}
local rows = {}
for i, id in ipairs(ids) do
  rows[i] = { id, {}, {}, '', '', claims[i], '' }
end
for at, set_key in ipairs({
  KEYS.pending, KEYS.scheduled, KEYS.active, KEYS.retry, KEYS.completed, KEYS.dead, KEYS.limited,
}) do
  -- Look the ids up in groups, because a scan of a small key returns all its ids, which may be too
  -- many for one `unpack`.
  for first = 1, #ids, 500 do
    local last = math.min(first + 499, #ids)
    for i, score in ipairs(redis.call('ZMSCORE', set_key, unpack(ids, first, last))) do
      if score then
        table.insert(rows[first + i - 1][2], state_names[at])
      end
    end
  end
end
for at, hash_key in ipairs({
  KEYS.tasks, KEYS.owner, KEYS.crashes, KEYS.failures, KEYS.results, KEYS.keys, KEYS.cancels,
  KEYS.progress, KEYS.successors, KEYS.holds,
}) do
  if redis.call('EXISTS', hash_key) == 1 then
    for i, id in ipairs(ids) do
      if redis.call('HEXISTS', hash_key, id) == 1 then
        table.insert(rows[i][3], hash_names[at])
      end
    end
  end
end

-- Fill in a task's lock and that lock's holder; clear the claim if the lock no longer names the
-- task.
local function look_at_locks(row)
  local id, claim = row[1], row[6]
  local lock = redis.call('HGET', KEYS.unique, '@' .. id) or ''
  row[4] = lock
  row[5] = named_holder(redis.call('HGET', KEYS.unique, '=' .. lock)) or ''
  if claim == '' then
    return
  end
  local field = id == '' and claim or '=' .. claim
  local held = redis.call('HGET', KEYS.unique, field)
  if not held or id ~= '' and named_holder(held) ~= id then
    row[6] = ''
  elseif id ~= '' and claim ~= lock then
    row[7] = redis.call('HGET', KEYS.tasks, id) or ''
  end
end

-- Return whether a task should hold limits but does not. Messages over 16 KiB are not read.
local function lacks_holds(id, states, hashes)
  local state = states[1]
  local holds = state == 'pending' or state == 'active' or state == 'scheduled' or state == 'retry'
  if not holds or hashes[#hashes] == 'holds' or redis.call('HSTRLEN', KEYS.tasks, id) > 16384 then
    return false
  end
  return #limits_of_message(redis.call('HGET', KEYS.tasks, id)) > 0
end

if redis.call('HGET', KEYS.meta, 'schema') == newest_schema then
  for _, row in ipairs(rows) do
    if lacks_holds(row[1], row[2], row[3]) then
      table.insert(row[3], 'unheld')
    end
  end
end

local any_locks = redis.call('EXISTS', KEYS.unique) == 1
for _, row in ipairs(rows) do
  if any_locks then
    look_at_locks(row)
  else
    row[6] = ''
  end
  row[2], row[3] = table.concat(row[2], ' '), table.concat(row[3], ' ')
end
return { cursor, rows }
