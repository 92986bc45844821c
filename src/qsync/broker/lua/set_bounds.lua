#!lua flags=allow-oom
-- set_bounds: set or remove the bounds that a program or an operator sets for a queue. The first
-- bound moves the queue to layout 2. When the first bound on bytes is set, the script computes the
-- size of all messages.
-- include: check_schema preconditions ensure_schema clock queue_bounds record_event
-- KEYS[1] meta       hash    bounds, !bounds, bytes
-- KEYS[2] tasks      hash    id -> message
-- KEYS[3] pending    zset    ids by order tag
-- KEYS[4] limited    zset    ids by order tag
-- KEYS[5] scheduled  zset    ids by due time
-- KEYS[6] retry      zset    ids by due time
-- KEYS[7] active     zset    ids by lease expiry
-- KEYS[8] completed  zset    ids by end of retention
-- KEYS[9] dead       zset    ids by time of death
-- KEYS[10] events    stream  actions of operators
-- ARGV[1] now        int us  empty: the store's clock
-- ARGV[2] event    bytes   record of the action, see include/record_event.lua; empty: none
-- ARGV[3] field      text    bounds: the program's; !bounds: the operator's
-- ARGV[4] bounds     text    `<max tasks> <max bytes> <when full>`; each number may be empty;
--   empty: remove
-- ARGV[5] by         text    name of the operator; empty for a program
-- returns 1 when this changed something
check_schema()
check_hash(KEYS.tasks)
check_rights(KEYS.meta, { 'HSET', 'HDEL', 'HSTRLEN', 'ZRANGE' })
local now, before = clock(ARGV.now), redis.call('HGET', KEYS.meta, ARGV.field)
local changed = 0
if ARGV.bounds == '' then
  changed = redis.call('HDEL', KEYS.meta, ARGV.field)
else
  local value = ARGV.bounds
  if ARGV.field == '!bounds' then
    value = table.concat({ value, to_text(now), ARGV.by }, ' ')
  end
  if value ~= before then
    lift_schema()
    redis.call('HSET', KEYS.meta, ARGV.field, value)
    changed = 1
  end
end
local known = redis.call('HMGET', KEYS.meta, 'bounds', '!bounds', 'bytes')
local _, most_bytes = read_bounds(known[1], known[2])
if most_bytes == math.huge then
  redis.call('HDEL', KEYS.meta, 'bytes')
elseif not known[3] then
  redis.call('HSET', KEYS.meta, 'bytes', to_text(count_bytes()))
end
return record_event(now, ARGV.event, changed, {})
