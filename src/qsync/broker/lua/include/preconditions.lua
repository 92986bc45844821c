-- preconditions: check what would make a script fail between two writes, so that it fails before
-- the first write instead.

-- Fail unless the user may run these commands.
local function check_rights(any_key, commands)
  for _, command in ipairs(commands) do
    if not redis.acl_check_cmd(command, any_key) then
      error({ err = table.concat({
        'NOPERM this user has no permissions to run the', command, 'command, which is needed here',
      }, ' ') })
    end
  end
end

-- Fail if the key exists and is not a hash.
local function check_hash(hash_key)
  redis.call('HEXISTS', hash_key, '')
end

-- Fail if the key exists and is not a sorted set.
local function check_set(set_key)
  redis.call('ZSCORE', set_key, '')
end

-- Fail before tasks change their state if one of the necessary writes would fail. The script must
-- already have read `pending`, which checks its type.
local function check_transitions()
  check_hash(KEYS.owner)
  check_rights(KEYS.tasks, { 'ZREM', 'ZADD', 'HSET', 'HGET', 'HDEL', 'ZCARD' })
  -- flow:
  check_hash(KEYS.keys)
  check_rights(KEYS.tasks, { 'ZRANGEBYSCORE' })
  -- end flow
end
