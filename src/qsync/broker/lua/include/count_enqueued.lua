-- count_enqueued: count plain tasks that are enqueued one by one. The field `tally` of `meta` holds
-- the sum of up to 64 such tasks. Adding to the tally takes one write per task. Updating the
-- counters `enqueued` and `bytes`, in total and per day, would take four. Readers add the tally to
-- the counters.

-- What each task adds to the field `tally`, in addition to its size in bytes, which is at most
-- 2^29.
local one_task = 1000000000000

-- Add the field `tally` to the counters of its day, and delete it.
local function add_enqueued(day)
  local sum = tonumber(redis.pcall('HGET', KEYS.meta, 'tally') or '')
  if redis.pcall('HDEL', KEYS.meta, 'tally') == 1 and sum and sum > 0 and sum < 2 ^ 53 then
    count_pair(
      parse_int(day, 0) * 86400000000, 'enqueued', math.floor(sum / one_task),
      'bytes', sum % one_task
    )
  end
end

-- Count a task of this size. `tally_day` is the day of the field `tally`, from `meta`. If the
-- script has already added the task to the tally, `sum` is the reply to that command.
local function count_enqueued(now, tally_day, size, sum)
  local day = math.floor(now / 86400000000)
  if tonumber(tally_day or '') ~= day then
    add_enqueued(tally_day)
    tally_day = to_text(day)
    redis.pcall('HSET', KEYS.meta, 'tally_day', tally_day)
  end
  sum = sum or redis.pcall('HINCRBY', KEYS.meta, 'tally', one_task + size)
  if type(sum) ~= 'number' or sum < one_task then
    redis.pcall('HDEL', KEYS.meta, 'tally')
    count_pair(now, 'enqueued', 1, 'bytes', size)
  elseif sum >= 64 * one_task then
    add_enqueued(tally_day)
  end
end
