#!lua
-- enqueue_one: store one new task without options. This script takes a third of the time that
-- `enqueue` takes. The script creates shared functions only in the blocks that need them. A
-- repeated call writes nothing and returns the same reply, even after the task has left the queue.
-- When the store is out of memory, it refuses the call and writes nothing.
-- plain variant of: enqueue
-- include: check_schema ensure_schema clock wake_server counters count_enqueued
-- include: fairness_tags enqueue_replay
-- KEYS[1] tasks      hash    id -> message
-- KEYS[2] pending    zset    ids by order tag
-- KEYS[3] fairness   zset    fairness keys by last tag
-- KEYS[4] wake       list
-- KEYS[5] meta       hash    virtual time, tally
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
local known = redis.call('HMGET', KEYS.meta, 'schema', 'v', 'tally_day')
if known[1] ~= '1' then
  -- here: check_schema ensure_schema
  ensure_schema(known[1])
end
local last = redis.call('HGET', KEYS.calls, ARGV.sender)
-- The record is nearly always `<number> <time>`, and its number has as many digits as this call's
-- number, so the two can be compared as text.
if last and not (#last == #ARGV.number + 17 and last < ARGV.number) then
  -- here: clock enqueue_replay
  local number, before = tonumber(ARGV.number), last_call(ARGV.sender)
  if number <= before then
    return number == before and first_reply(last, ARGV.id) or {}
  end
end
local now_text = ARGV.now
if now_text == '' then
  local time = redis.call('TIME')
  local seconds, micros = time[1], time[2]
  if #micros < 6 then
    local zeros = string.sub('000000', #micros + 1)
    micros = zeros .. micros
  end
  now_text = seconds .. micros
end
local now = tonumber(now_text)
local time_bytes = struct.pack('>I8', now)
local stamped = ARGV.head .. time_bytes .. ARGV.message
-- If the first write fails, nothing has been written; if a later one fails, the earlier ones are
-- undone.
redis.call('HSET', KEYS.calls, ARGV.sender, ARGV.number .. ' ' .. now_text)
local reply = redis.pcall('HSETNX', KEYS.tasks, ARGV.id, stamped)
if reply == 1 then
  reply = redis.pcall('ZADD', KEYS.fairness, 'INCR', '1', '')
  if type(reply) == 'string' then
    -- The reply is used without a conversion, because converting a number to text takes longer than
    -- all other steps.
    local tag, virtual = reply, tonumber(known[2] or '0')
    local last_tag = tonumber(reply)
    if not (virtual and virtual >= 0 and last_tag >= virtual + 1 and last_tag < 2 ^ 53) then
      -- here: fairness_tags
      tag = math.max(read_tag(reply), read_tag(known[2]) + 1)
      if tag ~= last_tag then
        redis.call('ZADD', KEYS.fairness, tag, '')
      end
    end
    reply = redis.pcall('ZADD', KEYS.pending, tag, ARGV.id)
  end
  if type(reply) == 'number' then
    local there = redis.pcall('EXISTS', KEYS.idle, KEYS.idle, KEYS.wake)
    if there ~= 1 then
      -- here: wake_server
      wake_server(there)
    end
    local sum
    if tonumber(known[3] or '') == math.floor(now / 86400000000) then
      sum = redis.pcall('HINCRBY', KEYS.meta, 'tally', 1000000000000 + #stamped)
    end
    if not (type(sum) == 'number' and sum >= 1000000000000 and sum < 64000000000000) then
      -- here: clock counters count_enqueued
      count_enqueued(now, known[3], #stamped, sum)
    end
    return 'created'
  end
  redis.pcall('HDEL', KEYS.tasks, ARGV.id)
elseif reply == 0 then
  local stored = redis.call('HGET', KEYS.tasks, ARGV.id)
  if string.sub(stored, #ARGV.head + 9) == ARGV.message then
    return 'created'
  end
  reply = { 'exists', ARGV.id }
end
if last then
  redis.pcall('HSET', KEYS.calls, ARGV.sender, last)
else
  redis.pcall('HDEL', KEYS.calls, ARGV.sender)
end
if reply.err then
  error(reply)
end
return reply
