#!lua flags=no-writes
-- queues: read some of the names of the queues in use.
-- KEYS[1] queues   set
-- ARGV[1] cursor   text       '0' at first, then the cursor that the last call returned
-- ARGV[2] count    int        approximate number of names
-- ARGV[3] longest  int bytes  maximum length of a name; longer names are omitted
-- returns the cursor, '0' after the last part; the number of names in the set; and names
local found = redis.call('SSCAN', KEYS.queues, ARGV.cursor, 'COUNT', ARGV.count)
local names = {}
for _, name in ipairs(found[2]) do
  if #name <= tonumber(ARGV.longest) then
    names[#names + 1] = name
  end
end
return { found[1], redis.call('SCARD', KEYS.queues), names }
