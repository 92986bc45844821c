#!lua flags=allow-oom
-- record_event: record an action of an operator that no other script records.
-- include: check_schema clock record_event
-- KEYS[1] events  stream  actions of operators: of a queue, or those that belong to no queue
-- KEYS[2] meta    hash    schema; without this key the actions belong to no queue
-- ARGV[1] now     int us  empty: the store's clock
-- ARGV[2] event   bytes   `+` or `-`, a key of 8 bytes and a record, see the include
-- ARGV[3] number  int     number of things that the action changed
-- ARGV[4...] ids of tasks
-- returns 1
if KEYS.meta then
  check_schema()
end
local ids = {}
for i = 4, #ARGV do
  ids[#ids + 1] = ARGV[i]
end
record_event(clock(ARGV.now), ARGV.event, tonumber(ARGV.number), ids)
return 1
