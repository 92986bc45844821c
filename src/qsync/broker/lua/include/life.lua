-- life: detect outages. If no server fetched or renewed for half a lease, the store was down or its
-- clock jumped, and leases expired that their servers could not renew. Then recovery of expired
-- leases is delayed for a third of a lease, so that the servers can renew them.

-- Record that a server is present. Returns the time until which recovery is delayed, 0: not delayed.
-- `noted` and `outage` are `seen` and `returned` of meta.
local function note_life(meta_key, now, lease, noted, outage)
  local seen, returned = digits(noted, now), digits(outage, -lease)
  if now - seen > lease / 2 then
    returned = now
    redis.call('HSET', meta_key, 'returned', whole(now))
  end
  if not noted or math.abs(now - seen) > lease / 20 then
    redis.call('HSET', meta_key, 'seen', whole(now))
  end
  local spared = math.floor(returned + lease / 3)
  return now >= returned and now < spared and spared or 0
end
