#!lua flags=no-writes
-- list_tasks: read a page of the tasks in a state.
-- The page has fewer tasks than requested if the tasks are large. A call reads at most 4 MiB and
-- returns at most about 256 KiB, so that it does not block the store for long.
-- include: check_schema clock truncate_message page_position
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
-- KEYS[11] cancels   hash    id -> retention us
-- KEYS[12] progress  hash    id -> done/total, or @<us> at which it became runnable
-- KEYS[13] meta      hash    schema
-- KEYS[14] limited   zset    ids by order tag
-- ARGV[1] now        int us  empty: the store's clock
-- ARGV[2] state      text
-- ARGV[3] count      int     maximum number of tasks, 1 to 500
-- ARGV[4] backwards  flag    from the highest score to the lowest; empty: from the lowest
-- ARGV[5] score      number  score of the task after which the page begins; empty: at the start
-- ARGV[6] id         text    id of that task
-- REPLY[1] now    int   us
-- REPLY[2] total  int   number of tasks in the state
-- REPLY[3] more   flag  whether other tasks follow
-- REPLY[4] rows   list  per task: id, score, length of its message, the message (truncated when long),
--   owner, crash count, failure record, retention in cancels, progress
check_schema()
local set = ({
  pending = KEYS.pending, scheduled = KEYS.scheduled, active = KEYS.active, retry = KEYS.retry,
  completed = KEYS.completed, dead = KEYS.dead, limited = KEYS.limited,
})[ARGV.state]

local function ids_from(set_key, total)
  local first, count = 0, tonumber(ARGV.count)
  if ARGV.backwards == '' then
    if ARGV.score ~= '' then
      first = count_before(set_key, tonumber(ARGV.score), ARGV.id, true)
    end
    return first, redis.call('ZRANGE', set_key, first, first + count - 1, 'WITHSCORES')
  end
  if ARGV.score ~= '' then
    first = total - count_before(set_key, tonumber(ARGV.score), ARGV.id, false)
  end
  return first, redis.call('ZRANGE', set_key, first, first + count - 1, 'REV', 'WITHSCORES')
end

local total = redis.call('ZCARD', set)
local first, found = ids_from(set, total)
local failed = redis.call('EXISTS', KEYS.failures) == 1
local rows, ids, short, read, returned = {}, {}, {}, 0, 0
for i = 1, #found / 2 do
  local id = found[2 * i - 1]
  local length = redis.call('HSTRLEN', KEYS.tasks, id)
  local failure = failed and redis.call('HSTRLEN', KEYS.failures, id) or 0
  read = read + length + failure
  returned = returned + math.min(length, 16384) + failure
  if i > 1 and (read > 4194304 or returned > 262144) then
    break
  end
  ids[i] = id
  rows[i] = { id, found[2 * i], to_text(length) }
  if length <= 16384 then
    short[#short + 1] = id
  else
    rows[i][4] = truncate_message(id)
  end
end
local messages, at = #short > 0 and redis.call('HMGET', KEYS.tasks, unpack(short)) or {}, 0
for _, row in ipairs(rows) do
  if not row[4] then
    at = at + 1
    row[4] = messages[at] or ''
  end
end
for at, hash_key in ipairs({
  KEYS.owner, KEYS.crashes, KEYS.failures, KEYS.cancels, KEYS.progress,
}) do
  local fields = {}
  if #ids > 0 and redis.call('EXISTS', hash_key) == 1 then
    fields = redis.call('HMGET', hash_key, unpack(ids))
  end
  for i = 1, #ids do
    rows[i][at + 4] = fields[i] or false
  end
end
return reply({
  now = to_text(clock(ARGV.now)), total = total, more = first + #ids < total, rows = rows,
})
