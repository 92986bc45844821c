"""The faults that a queue must survive and the guarantees that it gives, by number.

A test names the faults and guarantees that it covers with `@pytest.mark.faults(1, 7)` and
`@pytest.mark.guarantee(2)`. docs/reliability.md is generated from these marks and the descriptions
below.
"""

from __future__ import annotations

from typing import Final

GUARANTEES: Final[dict[int, str]] = {
    1: "A task whose enqueue returned is run at least once, as long as the store keeps its data.",
    2: "A task is in exactly one state at any moment, including after a crash at any point.",
    3: "A server that lost its lease changes nothing.",
    4: "Tasks of a crashed server are pending again within lease + 5 s if any server is alive; "
    "tasks of a crashed child process of `qsync worker` are pending again within 1 s.",
    5: "A task never starts before its time and never after its deadline. A task starts "
    "at most 1 + retries + crashes + hand-backs + rollbacks of the store times.",
    6: "A unique lock is held exactly until its task has ended and the time given with `unique=` "
    "has passed.",
    7: "Servers survive every error reply from the store: after a temporary error they retry with "
    "jittered delays, and no error stops a server or uses up an attempt of a task.",
    8: "Payloads are bytes or msgpack. Nothing is ever unpickled.",
}

FAULTS: Final[dict[int, str]] = {
    # processes
    1: "a server is killed in the middle of a task",
    2: "all servers die, and another one starts later",
    3: "a server pauses until its leases have expired, and then continues",
    4: "a handler blocks the event loop",
    5: "C code holds the GIL for longer than a lease",
    6: "a handler ignores its timeout and its cancellation",
    7: "a task kills its process on every attempt",
    8: "a task that kills its process also ends that process's other tasks",
    9: "SIGTERM arrives while tasks run",
    10: "a second signal arrives during a shutdown",
    11: "SIGTERM arrives between the fetch and the start of a task",
    12: "a process forks while connections are open",
    13: "the log cannot be written: the disk is full, or stderr is broken or closed",
    14: "a handler runs out of memory",
    15: "a handler raises SystemExit, KeyboardInterrupt or GeneratorExit",
    16: "processes are replaced after a set number of tasks",
    # the store
    17: "the store restarts and keeps its data",
    18: "the store restarts empty, or is flushed",
    19: "the tail of the append-only file is lost",
    20: "an old snapshot is restored",
    21: "a failover loses acknowledged writes",
    22: "a failover restores an old state",
    23: "the primary has become a replica (READONLY)",
    24: "the store replies with each error code to each script",
    25: "the store forgets its scripts (NOSCRIPT)",
    26: "the store is out of memory",
    27: "the store evicts keys",
    28: "the store does not respond for several seconds",
    29: "scripts run for a long time, and batches are large",
    30: "a large queue is deleted",
    31: "scripts and connections are killed",
    32: "the store accepts no more connections",
    33: "the store is upgraded or replaced with another product",
    # the network and the client
    34: "the reply to an enqueue is lost",
    35: "the reply to a fetch is lost",
    36: "the reply to a settlement is lost",
    37: "a call is cancelled between request and reply",
    38: "a connection is half open",
    39: "connections are reset again and again",
    40: "the name of the store resolves to another address",
    41: "the network is slow",
    42: "pub/sub messages are lost",
    43: "hundreds of clients reconnect at the same time",
    44: "a dependency is down, and every task fails",
    45: "the clocks of servers are wrong or jump",
    46: "the clock of the store jumps",
    47: "the store user has few permissions",
    48: "the store is available only as a cluster",
    # clusters
    49: "the keys of one call are in different slots",
    50: "slots are moved under load",
    51: "a primary of a cluster is replaced",
    52: "one shard is down, and queues on other shards continue",
    53: "queues with weights are on several shards",
    54: "scripts use undeclared keys",
    # contents and versions
    55: "a message cannot be decoded",
    56: "a server does not know the type of a task",
    57: "messages have an earlier or a later version",
    58: "scripts of an earlier version read data written by a later version",
    59: "a payload or a result is too large",
    60: "values are deeply nested, huge or malformed",
    61: "a result is stored although its task has not ended, or a task ends without its result",
    62: "formatting an exception raises an error or never ends",
    63: "a handler enqueues, and then its process dies",
    # time, locks, limits
    64: "a server dies while it promotes due tasks",
    65: "very many tasks are due at the same time",
    66: "a task starts early or late",
    67: "several schedulers run, and a tick fires twice",
    68: "ticks are missed while no server runs",
    69: "daylight saving time begins or ends, and time zones change",
    70: "the task of an earlier tick is dead",
    71: "a unique lock is left behind",
    72: "a unique lock expires before its task ends",
    73: "a task ends, and its lock is not released",
    74: "a server leaks slots",
    75: "a deadline passes while the task is in the queue",
    76: "an operator cancels, deletes or runs a task that is already running",
    77: "a queue is paused while servers fetch",
    78: "a queue or a tenant starves",
    79: "keys are left behind",
    80: "counts are wrong after a crash",
    81: "names collide or are hostile",
    82: "one tenant fills the store",
    # refusals
    83: "the store refuses settlements because it is full, or for another reason",
    84: "half-way through a script, a command is refused or a key has the wrong type",
    # outages
    85: "very many callers wait for an unavailable store",
    86: "an operation runs while a node that it does not need is unavailable",
    87: "idle connections are lost without notice",
    88: "a caller repeats an enqueue after its task has left the queue",
    # servers
    89: "a server reuses the id of an earlier server",
    90: "callers need more connections than the pool has",
    91: "the Sentinels refuse a request, or need separate credentials",
    92: "tasks that may have killed their process are numerous or run for a long time",
    93: "queues with weights hold large and small payloads",
    94: "the expression of a schedule changes",
    95: "a server fails to start in a child of `qsync worker`",
    96: "a handler process is killed after it has started programs or printed lines",
    97: "an operator stops the processes of a worker",
    98: "an autoscaler reads the load after idle minutes or bursts, or the load of other queues",
    99: "queues and servers are idle",
    100: "one server has hundreds or thousands of queues",
    101: "tasks end while they wait for a thread or a process",
    102: "several servers in one event loop receive a signal",
    103: "a child process that a handler forked returns from the handler",
}

OPTIONAL: Final = frozenset({5, 13, 14, 16, 32, 33, 40, 41, 44, 48, 53, 54, 59, 63, 78, 82})
"""Rows that need neither a test nor a reason for having none."""

LEFT_OUT: Final[dict[int, str]] = {}
"""Reasons why some rows that should have a test have none. A row with a test must not be listed
here."""
