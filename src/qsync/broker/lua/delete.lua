#!lua flags=allow-oom
-- delete: delete tasks in a state other than active.
-- include: schema guard clock lock ended erase
-- KEYS[1] tasks      hash    id -> message
-- KEYS[2] pending    zset    ids by order tag
-- KEYS[3] scheduled  zset    ids by due time
-- KEYS[4] retry      zset    ids by due time
-- KEYS[5] completed  zset    ids by end of retention
-- KEYS[6] dead       zset    ids by time of death
-- KEYS[7] crashes    hash    id -> crash count
-- KEYS[8] failures   hash    id -> failure record
-- KEYS[9] results    hash    id -> result record
-- KEYS[10] unique    hash    locks
-- KEYS[11] keys      hash    id -> fairness key
-- KEYS[12] cancels   hash    id -> retention us
-- KEYS[13] progress  hash    id -> done/total, or @<us> at which it became runnable
-- KEYS[14] done      channel of ended tasks
-- KEYS[15] meta      hash    schema
-- KEYS[16] recent  zset    ids that callers chose, by expiry time
-- ARGV[1] now        int us  empty: the store's clock
-- ARGV[2] state      text    state in which the caller saw them
-- ARGV[3...] ids
-- returns the number of deleted tasks
local k = {
  tasks = KEYS[1], crashes = KEYS[7], failures = KEYS[8], results = KEYS[9], unique = KEYS[10],
  keys = KEYS[11], cancels = KEYS[12], progress = KEYS[13],
  recent = KEYS[16],
}
check_schema(KEYS[15])
local set = ({
  pending = KEYS[2], scheduled = KEYS[3], retry = KEYS[4], completed = KEYS[5], dead = KEYS[6],
})[ARGV[2]]
local now, gone = clock(ARGV[1]), {}
check_hash(k.tasks)
check_rights(k.tasks, { 'HDEL', 'HMGET', 'EXISTS' })
for i = 3, #ARGV do
  if set and redis.call('ZREM', set, ARGV[i]) == 1 then
    gone[#gone + 1] = ARGV[i]
  end
end
erase(k, now, gone)
forget_recent(k, gone)
note_ended(gone)
publish_ended(KEYS[14])
return #gone
