-- outage_grace: detect outages. If no server fetched tasks or renewed leases for half a lease
-- duration, the store was down or its clock jumped, and servers could not renew leases that have
-- expired since. Recovery of expired leases is then delayed for a third of a lease duration, so
-- that the servers can renew them.

-- Record that a server is present. Returns the time until which recovery is delayed; 0 means that
-- it is not delayed. `noted` and `outage` are the fields `seen` and `returned` of `meta`.
local function outage_grace(now, lease, noted, outage)
  local seen, returned = parse_int(noted, now), parse_int(outage, -lease)
  if now - seen > lease / 2 then
    returned = now
    redis.call('HSET', KEYS.meta, 'returned', to_text(now))
  end
  if not noted or math.abs(now - seen) > lease / 20 then
    redis.call('HSET', KEYS.meta, 'seen', to_text(now))
  end
  local spared = math.floor(returned + lease / 3)
  return now >= returned and now < spared and spared or 0
end
