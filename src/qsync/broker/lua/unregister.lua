#!lua flags=allow-oom
-- unregister: queues that are not in use any more.
-- KEYS[1] queues  set
-- ARGV[1...] names of queues
-- returns how many were there
if #ARGV == 0 then
  return 0
end
return redis.call('SREM', KEYS[1], unpack(ARGV))
