#!lua flags=allow-oom
-- begin_ticks: read, for each schedule, the time after which its ticks are due. This time is the
-- last tick that was enqueued, or the time since which the schedule has had its current expression,
-- whichever is later. The latter is the current time if the schedule is new, if its expression
-- changed, or if no server published the schedule while other schedules were published. So no
-- earlier ticks are enqueued. During a deploy, old and new servers may publish two expressions of
-- one schedule. So each expression has its own time, which is kept while servers publish the
-- expression. If a wrong clock recorded the last tick, the script uses the current time instead.
-- include: check_schema clock
-- KEYS[1] ticks      hash    schedule -> last tick enqueued, us
-- KEYS[2] schedules  hash    #<schedule> -> its expressions; # -> start and last time, us, of the
--                            publications without a longer gap than `silence`
-- KEYS[3] meta       hash    schema
-- ARGV[1] now        int us  empty: the store's clock
-- ARGV[2] silence    int us  time without a publication after which a schedule may be gone
-- ARGV[3...] two values per schedule: name, and a digest of its expression
-- returns now, then for each schedule the time after which its ticks are due, us
check_schema()
local now, silence = clock(ARGV.now), tonumber(ARGV.silence)
local from, to = string.match(redis.call('HGET', KEYS.schedules, '#') or '', '^(%d+) (%d+)$')
from, to = parse_int(from, 0), parse_int(to, 0)

-- Return the time since which the expression has been in force (0 means always), and record that it
-- is still in force. For each expression, `#<schedule>` holds the digest, that time, and the time
-- at which a server last asked for it.
local function in_force_since(id, digest)
  -- Read only 1,024 bytes. The eight entries of a valid record take less, and a long, damaged
  -- record would block the store.
  local known = string.sub(redis.call('HGET', KEYS.schedules, '#' .. id) or '', 1, 1024)
  local all, latest, kept = {}, 0, {}
  for of, since, seen in string.gmatch(known, '(%x+) (%d+) (%d+)') do
    all[#all + 1] = { of, parse_int(since, 0), parse_int(seen, 0) }
    latest = math.max(latest, all[#all][3])
  end
  local mine = { digest, #all == 0 and 0 or now, -silence }
  for _, one in ipairs(all) do
    local quiet = now - one[3] > silence
    local left_out = one[3] < latest or to - math.max(from, one[3]) > silence
    if one[1] ~= digest and not quiet and #kept < 8 then
      kept[#kept + 1] = table.concat({ one[1], to_text(one[2]), to_text(one[3]) }, ' ')
    elseif one[1] == digest and not (quiet and left_out) then
      mine = one
    end
  end
  if now - mine[3] > silence / 6 or now < mine[3] then
    kept[#kept + 1] = table.concat({ digest, to_text(mine[2]), to_text(now) }, ' ')
    redis.call('HSET', KEYS.schedules, '#' .. id, table.concat(kept, ' '))
  end
  return math.min(mine[2], now)
end

local replies = { to_text(now) }
for i = 3, #ARGV, 2 do
  local last = parse_int(redis.call('HGET', KEYS.ticks, ARGV[i]))
  if not last or is_of_wrong_clock(last, now) then
    last = now
    redis.call('HSET', KEYS.ticks, ARGV[i], to_text(now))
  end
  if ARGV[i + 1] ~= '' then
    last = math.max(last, in_force_since(ARGV[i], ARGV[i + 1]))
  end
  replies[#replies + 1] = to_text(last)
end
return replies
