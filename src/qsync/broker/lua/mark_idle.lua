#!lua flags=allow-oom
-- mark_idle: register a server as idle in a queue, unless the queue has work for it. The server
-- must be subscribed to its channel for the queue. The script pops the element of the wake list, as
-- a blocking server does. If there is no element and no task can be fetched, the script adds the
-- server to the idle servers, which a message wakes. While the server is idle, only a client that
-- sends no messages adds an element to the list. A server that waits for a long time adds itself
-- again; ids that were last added over `keep` ago are removed.
-- variants: plain flow
-- include: check_schema ensure_schema clock find_work
-- KEYS[1] meta       hash    schema, paused, generation; when a server was last seen
-- KEYS[2] pending    zset    ids by order tag
-- KEYS[3] scheduled  zset    ids by due time
-- KEYS[4] retry      zset    ids by due time
-- KEYS[5] active     zset    ids by lease expiry
-- KEYS[6] completed  zset    ids by end of retention
-- KEYS[7] wake       list
-- KEYS[8] idle       zset    ids of servers that a message wakes
-- flow KEYS[9] openings  zset    limits by the time at which they open, us
-- ARGV[1] now        int us  empty: the store's clock
-- ARGV[2] lease      int us
-- ARGV[3] server     text    id of the server
-- ARGV[4] keep       int us  time after which an id that is not added again is removed
-- returns generation, empty before the first fetch; 1 when tasks can be fetched; 1 when upkeep is
--   due; 1 when the list had an element; 1 when the client that added it sent no message to this
--   idle server
local generation, waits, due, layout = find_work(ARGV.now, tonumber(ARGV.lease))
local since = redis.pcall('ZSCORE', KEYS.idle, ARGV.server)
local element = redis.pcall('LPOP', KEYS.wake)
local woken = type(element) == 'string'
if waits == 1 or woken then
  return { generation, waits, due, woken and 1 or 0, woken and since and 1 or 0 }
end
local now, keep = clock(ARGV.now), tonumber(ARGV.keep)
if type(since) ~= 'string' or math.abs(now - tonumber(since)) > keep / 2 then
  ensure_schema(layout)
  redis.pcall('ZADD', KEYS.idle, to_text(now), ARGV.server)
  redis.pcall('ZREMRANGEBYSCORE', KEYS.idle, '-inf', to_text(now - keep))
end
return { generation, waits, due, 0, 0 }
