#!lua flags=allow-oom
-- unregister: remove queues from the set of queues in use.
-- KEYS[1] queues  set
-- ARGV[1...] names of queues
-- returns how many were in the set
if #ARGV == 0 then
  return 0
end
return redis.call('SREM', KEYS.queues, unpack(ARGV))
