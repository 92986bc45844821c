-- life: whether servers were there all the time. When nobody fetched or renewed for half a lease the
-- store was away, or its clock leapt: then leases lapsed that their servers could not renew, and for
-- a third of a lease nobody takes their tasks, so that they can.

-- Note that a server is there. Returns the moment until which lapsed leases are spared, 0 for none.
-- `noted` and `outage` are what meta holds as `seen` and `returned`.
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
