#!lua
-- enqueue_one: store one new task without options, which takes the store half the time of enqueue.
-- A repeated call writes nothing and returns the same reply, even after the task has left the queue.
-- When the store is out of memory, it refuses the call and writes nothing.
-- plain variant of: enqueue
-- include: check_schema preconditions ensure_schema clock wake_server counters
-- include: fairness_tags enqueue_replay
-- KEYS[1] tasks      hash    id -> message
-- KEYS[2] pending    zset    ids by order tag
-- KEYS[3] fairness   zset    fairness keys by last tag
-- KEYS[4] wake       list
-- KEYS[5] meta       hash    virtual time
-- KEYS[6] stats      hash    counters
-- KEYS[7] calls      hash    sender -> record of its last call
-- KEYS[8] idle       zset    ids of servers that a message wakes
-- ARGV[1] now        int us  empty: the store's clock
-- ARGV[2] head       bytes   first bytes of each message, in front of the time stamp
-- ARGV[3] sender     text    id of the sender, which has one call in flight at a time
-- ARGV[4] number     int     number of this call; rises per sender
-- ARGV[5] id         text
-- ARGV[6] message    bytes
-- returns `created`; or exists, and the id; or an empty list when the sender has made a later call
local known = redis.call('HMGET', KEYS.meta, 'schema', 'v')
ensure_schema(known[1])
local now, sender, number = clock(ARGV.now), ARGV.sender, tonumber(ARGV.number)
local before, last = last_call(sender)
if number <= before then
  return number == before and first_reply(last, ARGV.id) or {}
end
local stamped = ARGV.head .. struct.pack('>I8', now)
local stored = redis.call('HGET', KEYS.tasks, ARGV.id)
if not stored then
  local tag = math.max(read_tag(known[2]), read_tag(redis.call('ZSCORE', KEYS.fairness, ''))) + 1
  check_rights(KEYS.tasks, { 'HSET' })
  -- The types of the other keys are known, so no later write can fail once this one has succeeded.
  redis.call('ZADD', KEYS.pending, tag, ARGV.id)
  redis.call('HSET', KEYS.tasks, ARGV.id, stamped .. ARGV.message)
  redis.call('ZADD', KEYS.fairness, tag, '')
  wake_server()
  count_pair(now, 'enqueued', 1, 'bytes', #stamped + #ARGV.message)
elseif string.sub(stored, #stamped + 1) ~= ARGV.message then
  return { 'exists', ARGV.id }
end
redis.call('HSET', KEYS.calls, sender, table.concat({ ARGV.number, to_text(now) }, ' '))
return 'created'
