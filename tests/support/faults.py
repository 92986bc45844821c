"""The faults that the queue has to survive and the guarantees that it gives, by number.

A test names those that it covers by `@pytest.mark.faults(1, 7)` and `@pytest.mark.guarantee(2)`;
docs/reliability.md is generated from these marks and the texts here.
"""

from __future__ import annotations

from typing import Final

GUARANTEES: Final[dict[int, str]] = {
    1: "A task whose enqueue returned is run at least once, as long as the store keeps its data.",
    2: "A task is in exactly one state at any moment, after a crash at any point too.",
    3: "A server that lost its lease changes nothing.",
    4: "Tasks of a crashed server are pending again within lease + 5 s, given any live server; "
    "those of a crashed child of `qsync worker` within 1 s.",
    5: "A task never starts before its time, never after its deadline, and never more often than "
    "1 + retries + crashes + hand-backs + rollbacks of the store explain.",
    6: "A unique lock never outlives its task and its window, and never lapses before them.",
    7: "Any error that the store can answer is survived: one that passes is tried again with "
    "jittered delays, and none kills a server or charges a task.",
    8: "Payloads are bytes or msgpack. Nothing is ever unpickled.",
}

FAULTS: Final[dict[int, str]] = {
    # processes
    1: "a server is killed in the middle of a task",
    2: "all servers die, and one comes later",
    3: "a server stands still past its leases and then goes on",
    4: "a handler blocks the event loop",
    5: "C code keeps the interpreter's lock for longer than a lease",
    6: "a handler ignores its timeout and its cancellation",
    7: "a task kills its process every time",
    8: "such a task takes its neighbours along",
    9: "SIGTERM while tasks run",
    10: "a second signal",
    11: "SIGTERM between the fetch and the start",
    12: "a process forks while connections are open",
    13: "a log that cannot be written: disk full, stderr broken or closed",
    14: "memory runs out in a handler",
    15: "SystemExit, KeyboardInterrupt or GeneratorExit from a handler",
    16: "processes that are recycled after so many tasks",
    # the store
    17: "the store restarts and keeps its data",
    18: "the store restarts empty, or is flushed",
    19: "the tail of the append-only file is lost",
    20: "an old snapshot is restored",
    21: "a failover loses writes that were answered",
    22: "a failover brings an old state back",
    23: "the primary has become a replica (READONLY)",
    24: "each error code that a store answers, at each script",
    25: "the store forgets its scripts (NOSCRIPT)",
    26: "the store is out of memory",
    27: "the store evicts keys",
    28: "the store stands still for seconds",
    29: "long scripts, large batches",
    30: "a large queue is deleted",
    31: "scripts and connections are killed",
    32: "the store takes no more connections",
    33: "the store is upgraded, or another product",
    # the network and the client
    34: "the reply to an enqueue is lost",
    35: "the reply to a fetch is lost",
    36: "the reply to a settlement is lost",
    37: "a call is cancelled between request and reply",
    38: "a connection that is half open",
    39: "connections are reset again and again",
    40: "the name of the store gets another address",
    41: "a slow network",
    42: "messages of pub/sub are lost",
    43: "hundreds reconnect at once",
    44: "a dependency is down, and every task fails",
    45: "clocks of servers are wrong and jump",
    46: "the clock of the store jumps",
    47: "the user of the store has few rights",
    48: "a store that is only a cluster",
    # clusters
    49: "keys of one call in different slots",
    50: "slots are moved under load",
    51: "a primary of a cluster is replaced",
    52: "one shard is down, and the queues of others go on",
    53: "weights of queues on several shards",
    54: "scripts with undeclared keys",
    # contents and versions
    55: "a message that cannot be decoded",
    56: "a task of a type that this server does not know",
    57: "messages of an earlier or a later version",
    58: "scripts of an earlier version on data of a later one",
    59: "a payload or a result that is too large",
    60: "deep, huge or malformed values",
    61: "a result without its end, or an end without its result",
    62: "exceptions whose text raises or is endless",
    63: "a handler enqueues, and then its process dies",
    # time, locks, limits
    64: "the server that promotes due tasks dies while it does",
    65: "very many tasks are due at one instant",
    66: "a task starts early, or late",
    67: "several schedulers, and a tick fires twice",
    68: "ticks are missed while nobody is up",
    69: "daylight saving time, and zones that change",
    70: "the task of an earlier tick is dead",
    71: "a unique lock is left behind",
    72: "a unique lock lapses while its task is unfinished",
    73: "a way to end a task that frees no lock",
    74: "slots of a server leak",
    75: "a deadline passes in the queue",
    76: "cancel, delete or run meets a task that is just being run",
    77: "a queue is paused while servers fetch",
    78: "a queue or a tenant starves",
    79: "keys are left behind",
    80: "counts are wrong after a crash",
    81: "names that collide, or are hostile",
    82: "one tenant fills the store",
    # refusals
    83: "the store refuses settlements because it is full, or for another reason",
    84: "a command of a script is refused, or a key holds something else, half-way",
    # outages
    85: "very many callers wait for a store that is away",
    86: "a node of a cluster is away that an operation does not need",
    87: "idle connections died unseen",
    88: "a caller repeats an enqueue after its task has left the queue",
    # servers
    89: "a server takes up the id of an earlier one",
    90: "callers want more connections than there are",
    91: "the Sentinels refuse, or have credentials of their own",
    92: "tasks that may kill their process run for long, or are many",
    93: "large payloads beside small ones, in queues with weights",
    94: "the expression of a schedule changes",
    95: "a server fails to start in a child of `qsync worker`",
    96: "a process for handlers is killed, and has started programs or printed lines",
    97: "an operator stops the processes of a worker",
    98: "an autoscaler asks after idle minutes and bursts, or for other queues",
    99: "queues and servers that are idle",
    100: "one server has hundreds or thousands of queues",
    101: "tasks are given up while they wait for a thread or a process",
    102: "several servers in one event loop get a signal",
    103: "a child that a handler forked returns from it",
}

OPTIONAL: Final = frozenset({5, 13, 14, 16, 32, 33, 40, 41, 44, 48, 53, 54, 59, 63, 78, 82})
"""Rows that may have neither a test nor a reason."""

LEFT_OUT: Final[dict[int, str]] = {}
"""Reasons why rows that should have a test have none. A row with a test must not be here."""
