#!lua flags=allow-oom
-- register: add queues to the set of queues in use.
-- KEYS[1] queues  set
-- ARGV[1...] names of queues
-- returns how many were new
if #ARGV == 0 then
  return 0
end
return redis.call('SADD', KEYS.queues, unpack(ARGV))
