"""One file for each peer: its handler, its server, and how its client enqueues.

A file is imported only in the environment of its peer, by the producer and by the server. It has

    COLOUR          "async" or "blocking": whether what follows is awaited
    connect         () -> context manager of a client
    enqueue         (client, payload) -> id, the task is in the store
    enqueue_many    (client, payloads), by the peer's own bulk call; None when it has none
    find            (client, id) -> bool, whether the peer's API finds a task that waits; None when
                    it has no call for that

and whatever the command in `table.py` needs to start the server. The handler calls
`counting.ran(payload)` and does nothing else.
"""
