"""One file for each peer, with its handler, its server and its client.

The producer and the server import a file only in the environment of its peer. Each file defines

    COLOUR          "async" or "blocking": whether the functions below are awaited
    connect         () -> context manager of a client
    enqueue         (client, payload) -> id; returns when the task is in the store
    enqueue_many    (client, payloads), by the peer's own bulk call; None if it has none
    find            (client, id) -> bool, whether the peer's API finds a waiting task; None if it
                    has no call for that

and everything that the server command in `table.py` needs. The handler only calls
`counting.ran(payload)`.
"""
