#!lua flags=no-writes
-- permissions: read which commands the connection's user may not run on a queue.
-- KEYS[1] meta  hash    stands for all keys of the queue
-- KEYS[2] done  channel of ended tasks
-- ARGV[1...] commands in lower case; a subcommand in the form `memory|usage`
-- returns the commands that the user may not run or that the store does not know
local refused = {}
for i = 1, #ARGV do
  local words = {}
  for word in string.gmatch(ARGV[i], '[^|]+') do
    words[#words + 1] = word
  end
  local about_channel = string.find(ARGV[i], 'publish$') or string.find(ARGV[i], 'subscribe$')
  words[#words + 1] = about_channel and KEYS.done or KEYS.meta
  local known, allowed = pcall(redis.acl_check_cmd, unpack(words))
  if not (known and allowed) then
    refused[#refused + 1] = ARGV[i]
  end
end
return refused
