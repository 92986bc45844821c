#!lua flags=no-writes
-- count_errors: count the failed tasks in a part of a state by the marks of their failure records.
-- The part ends before a task whose record has no mark, because an older version wrote the record
-- or the task's servers crashed.
-- include: check_schema page_position truncate_message failure_marks
-- KEYS[1] dead      zset    ids by time of death
-- KEYS[2] retry     zset    ids by due time
-- KEYS[3] crashes   hash    id -> crash count
-- KEYS[4] failures  hash    id -> failure record
-- KEYS[5] tasks     hash    id -> message
-- KEYS[6] meta      hash    schema
-- ARGV[1] state     text    dead or retry
-- ARGV[2] count     int     maximum number of tasks, 1 to 500
-- ARGV[3] score     number  score of the task before which the part begins; empty: at the end
-- ARGV[4] id        text    id of that task
-- ARGV[5] known     text    fingerprints of errors whose last task is not returned, separated by spaces
-- REPLY[1] more     flag    whether tasks are left
-- REPLY[2] read     int     number of tasks that were counted
-- REPLY[3] score    text    score of the last of them
-- REPLY[4] id       text    its id
-- REPLY[5] errors   list    for each error: fingerprint; number; first and last time, us; a flat
--   list of fairness keys and numbers; and of its last task: id, length of its message, the message
--   (truncated when long) and failure record, or no values for a known error
-- returns the fields of REPLY
check_schema()
local is_dead = ARGV.state == 'dead'
local set = ({ dead = KEYS.dead, retry = KEYS.retry })[ARGV.state]
local total = redis.call('ZCARD', set)
local first = 0
if ARGV.score ~= '' then
  first = total - count_before(set, tonumber(ARGV.score), ARGV.id, false)
end
local ids = redis.call('ZRANGE', set, first, first + tonumber(ARGV.count) - 1, 'REV')
local any_crashes = is_dead and redis.call('EXISTS', KEYS.crashes) == 1
local known = {}
for fingerprint in string.gmatch(ARGV.known, '%S+') do
  known[fingerprint] = true
end
local counts, read, marked, returned = new_error_counts(), 0, true, 0
while marked and read < #ids do
  local before, some = read, {}
  for i = 1, math.min(100, #ids - read) do
    some[i] = ids[read + i]
  end
  local records = redis.call('HMGET', KEYS.failures, unpack(some))
  local crashes = any_crashes and redis.call('HMGET', KEYS.crashes, unpack(some)) or {}
  for i, id in ipairs(some) do
    local record = records[i]
    local mark = read_mark(counts, record)
    if not mark or died_of_crashes(crashes[i]) then
      marked = false
      break
    end
    if not mark.entry.last and not known[mark.entry.fingerprint] then
      if returned > 262144 then
        marked = false
        break
      end
      local message, length = truncate_message(id)
      mark.entry.sample = { id, length, message, record }
      returned = returned + #message + #record
    end
    count_failure(mark, is_dead and id or failed_at(record))
    read = before + i
  end
end
local score = read > 0 and redis.call('ZSCORE', set, ids[read]) or ''
if is_dead then
  read_times(counts, set)
end
return reply({
  more = first + read < total, read = read, errors = list_error_counts(counts), score = score,
  id = ids[read],
})
