-- recover: tasks whose lease lapsed, since their server died or stood still.

-- Whether it may be a task id. Servers leave out anything else that got into a set, so that it ends
-- when its lease does.
local function is_id(member)
  return string.find(member, '^[!-~]+$') ~= nil
end

-- Their new crash counts: `died` and `back` are filled with the ids at the limit and below it.
-- The first lapse counts for all that the server held; later ones for what it had marked, unless it
-- ran beside other suspects.
-- Returns how many crashes were counted.
local function count_crashes(crashes_key, ids, max_crashes, died, back)
  if #ids == 0 then
    return 0
  end
  local crashed, fields = 0, {}
  for i, text in ipairs(redis.call('HMGET', crashes_key, unpack(ids))) do
    local crashes, spared = crash_count(text), spared_count(text)
    local sign = string.sub(text or '', -1)
    if sign == '-' and spared < SPARED_MOST then
      spared = spared + 1
    elseif crashes == 0 or sign == '+' or sign == '-' then
      crashes = crashes + 1
      crashed = crashed + 1
    end
    local of = crashes >= max_crashes and died or back
    of[#of + 1] = ids[i]
    fields[2 * i - 1] = ids[i]
    fields[2 * i] = crash_text(crashes, spared, of == died and '!' or '')
  end
  redis.call('HSET', crashes_key, unpack(fields))
  return crashed
end

-- Tasks that will not be run again. What is kept of them stays until they are trimmed.
local function to_dead(k, now, ids)
  if #ids == 0 then
    return
  end
  local dead = {}
  for i, id in ipairs(ids) do
    dead[2 * i - 1], dead[2 * i] = whole(now), id
  end
  redis.call('ZADD', k.dead, unpack(dead))
  unlock(k.unique, now, ids)
  forget_beside(k.keys, ids)
  note_ended(ids)
  count(k.stats, now, 'dead', #ids)
end

-- Tasks of others go back to the head of pending, or are dead when they crashed too often; those
-- whose cancel was asked for end. The caller's own are only reported: it may still hold them.
-- Returns own, back and died: lists of ids.
local function recover(k, now, server, max_crashes, lapsed)
  local own, cancelled, died, back, strange = {}, {}, {}, {}, {}
  if #lapsed == 0 then
    return own, back, died
  end
  local owners = redis.call('HMGET', k.owner, unpack(lapsed))
  local cancels = redis.call('HMGET', k.cancels, unpack(lapsed))
  local mine, taken, crashed = server .. '/', {}, {}
  for i, id in ipairs(lapsed) do
    local owner = owners[i]
    local of = cancels[i] and cancelled or crashed
    if not is_id(id) then
      of = strange
    elseif owner and string.sub(owner, 1, #mine) == mine then
      of = own
    end
    of[#of + 1] = id
    if of ~= own then
      taken[#taken + 1] = id
    end
  end
  check_hash(k.crashes)
  check_set(k.pending)
  check_set(k.dead)
  check_cancelled(k)
  release(k, taken)
  count(k.stats, now, 'crashed', count_crashes(k.crashes, crashed, max_crashes, died, back))
  to_head(k.pending, k.meta, back)
  note_runnable(k.progress, now, back)
  to_dead(k, now, died)
  end_cancelled(k, now, cancelled)
  erase(k, now, strange)
  return own, back, died
end
