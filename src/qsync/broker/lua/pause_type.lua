#!lua flags=allow-oom
-- pause_type: pause or resume a type of tasks in a queue. Tasks of a paused type become limited:
-- new tasks become limited immediately, and pending tasks when a fetch reaches them. After a
-- resume, fetches return them to `pending`.
-- include: check_schema preconditions ensure_schema clock wake_server open_limits record_event
-- KEYS[1] limit_rules hash  `@` -> paused types, `@<type>` -> pause
-- KEYS[2] waiters   zset    limit and id of each limited task
-- KEYS[3] openings  zset    limits by the time at which they open, us
-- KEYS[4] meta      hash    schema
-- KEYS[5] wake      list
-- KEYS[6] idle      zset    ids of servers that a message wakes
-- KEYS[7] events    stream  actions of operators
-- ARGV[1] now       int us  empty: the store's clock
-- ARGV[2] event    bytes   record of the action, see include/record_event.lua; empty: none
-- ARGV[3] type      text
-- ARGV[4] note      bytes   who pauses it and why, opaque to the scripts; empty: resume
-- ARGV[5] most      int     maximum number of paused types
-- returns 1 when it was paused or resumed, 0 when only the note changed or it was not paused, -1 when
--   `most` types are paused already
check_schema()
check_set(KEYS.waiters)
check_set(KEYS.openings)
check_rights(KEYS.limit_rules, { 'HSET', 'HDEL', 'ZADD', 'ZRANGEBYLEX' })
local now, limit = clock(ARGV.now), table.concat({ '@', ARGV.type })
local types, others, is_paused = redis.call('HGET', KEYS.limit_rules, '@') or '', {}, false
for name in string.gmatch(types, '[^%z]+') do
  if name == ARGV.type then
    is_paused = true
  else
    others[#others + 1] = name
  end
end

local function resume_type()
  redis.call('HDEL', KEYS.limit_rules, limit)
  if #others > 0 then
    redis.call('HSET', KEYS.limit_rules, '@', table.concat(others, '\0'))
  else
    redis.call('HDEL', KEYS.limit_rules, '@')
  end
  if open_one_limit(now, limit) then
    wake_server()
  end
end

if ARGV.note == '' then
  if is_paused then
    resume_type()
  end
  return record_event(now, ARGV.event, is_paused and 1 or 0, {})
end
if not is_paused and #others >= tonumber(ARGV.most) then
  return -1
end
local since = to_text(now)
if is_paused then
  local pause = redis.call('HGET', KEYS.limit_rules, limit) or ''
  since = string.match(pause, '^(%d+) ') or since
end
others[#others + 1] = ARGV.type
lift_schema()
redis.call(
  'HSET', KEYS.limit_rules, '@', table.concat(others, '\0'), limit,
  table.concat({ since, ARGV.note }, ' ')
)
record_event(now, ARGV.event, 1, {})
return is_paused and 0 or 1
