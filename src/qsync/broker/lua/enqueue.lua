#!lua
-- enqueue: store new tasks and put their ids into pending or scheduled.
-- Refused as a whole, with nothing written, when the store is out of memory.
-- Run again with the same arguments it writes nothing and answers the same.
-- include: clock wake count tags lock due store
-- KEYS[1] tasks      hash    id -> message
-- KEYS[2] pending    zset    ids by order tag
-- KEYS[3] scheduled  zset    ids by due time
-- KEYS[4] unique     hash    locks
-- KEYS[5] keys       hash    id -> fairness key
-- KEYS[6] fairness   zset    fairness keys by last tag
-- KEYS[7] wake       list
-- KEYS[8] meta       hash    virtual time, weights
-- KEYS[9] stats      hash    counters
-- ARGV[1] now        int us  empty: the store's clock
-- ARGV[2] head       bytes   what goes before the stamp
-- ARGV[3...] three a task: id, message, options (empty, or msgpack [due, key, lock, window us])
-- returns flat, two a task in order: created | exists | duplicate, and the id that holds it
local k = {
  tasks = KEYS[1], pending = KEYS[2], scheduled = KEYS[3], unique = KEYS[4], keys = KEYS[5],
  fairness = KEYS[6], wake = KEYS[7], meta = KEYS[8], stats = KEYS[9],
}
return store_tasks(k, ARGV, 3, clock(ARGV[1]), ARGV[2])
