#!lua flags=no-writes
-- queues: a part of the names of the queues in use.
-- KEYS[1] queues   set
-- ARGV[1] cursor   text       '0' at first, then what the call before returned
-- ARGV[2] count    int        about so many names
-- ARGV[3] longest  int bytes  names that are longer are left out: no queue has one
-- returns the cursor, '0' after the last part; how many names the set holds; and names
local found = redis.call('SSCAN', KEYS[1], ARGV[1], 'COUNT', ARGV[2])
local names = {}
for _, name in ipairs(found[2]) do
  if #name <= tonumber(ARGV[3]) then
    names[#names + 1] = name
  end
end
return { found[1], redis.call('SCARD', KEYS[1]), names }
