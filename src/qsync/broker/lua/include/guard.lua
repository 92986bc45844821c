-- guard: what could fail a script half-way fails it before its first write.

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

-- Fail when there is something else than a hash under this key.
local function check_hash(hash_key)
  redis.call('HEXISTS', hash_key, '')
end

-- Fail when there is something else than a sorted set under this key.
local function check_set(set_key)
  redis.call('ZSCORE', set_key, '')
end
