"""All keys of qsync in the store: name, type and lifetime. Only this module builds key names.

A queue has a fixed set of keys under one hash tag, `{prefix:queue}`, so that one script can
reach all of them in a cluster. There are no keys per task.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

from qsync.errors import InvalidTask
from qsync.phrase import phrase
from qsync.value_text import shorten

NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,128}")
"""Valid names of prefixes and queues."""

NAME_LIMIT: Final = 128
"""Maximum length of a prefix or a queue name, in characters."""

ID_LENGTH: Final = 128
"""Maximum length of a task id, in characters."""

TASK_ID: Final = re.compile(r"[!-~]{1,128}")
"""Valid task ids: printable ASCII without the space."""

QUEUE_KEYS: Final[dict[str, tuple[str, str]]] = {
    # name: (type, contents); us are microseconds
    "tasks": ("hash", "id -> message"),
    "scheduled": ("zset", "ids by due time (us)"),
    "pending": ("zset", "ids by order tag"),
    "limited": ("zset", "ids by order tag, of tasks that wait for a limit or have a paused type"),
    "active": (
        "zset",
        "ids by the time (us) at which the lease expires, minus 2**52 if the lease was abandoned",
    ),
    "retry": ("zset", "ids by due time (us)"),
    "completed": ("zset", "ids by the time (us) until which the task is kept"),
    "dead": ("zset", "ids by time of death (us)"),
    "owner": ("hash", "id -> lease token, <server id>[~<life>]/<fetch number>"),
    "crashes": (
        "hash",
        "id -> crash count, <n>[~<m>][<sign>], as described in docs/design/data-model.md",
    ),
    "failures": ("hash", "id -> failure record, of which scripts read only the time and the mark"),
    "results": ("hash", "id -> result record of a completed task"),
    "unique": (
        "hash",
        "=<lock> -> <end of the window (us)>:<id of the holder>; "
        "@<id> -> the lock, until the task has ended",
    ),
    "keys": ("hash", "id -> member, for tasks with a fairness key or a priority other than 5"),
    "fairness": ("zset", "members (priority and fairness key) by their last order tag"),
    "fetches": ("hash", "<server id>[~<life>] -> number, time and task ids of its last fetch"),
    "calls": (
        "hash",
        "sender -> number and time of its last call (enqueue, cancel or reschedule), and the "
        "tasks that the call did not create",
    ),
    "recent": ("zset", "ids that callers chose, by the time (us) until which they are refused"),
    "ticks": ("hash", "schedule -> last tick (us) that was enqueued"),
    "schedules": (
        "hash",
        "=<schedule> -> its record; ><schedule> -> its task; @<schedule> -> when (us) a server "
        "last published it; !<schedule> -> start (us), operator and reason of its pause; "
        "#<schedule> -> for each expression, its digest, the time (us) from which it applies, and "
        "the time (us) at which a server last asked",
    ),
    "stored_schedules": (
        "hash",
        "schedule that a client put -> time of the put (us, in 8 bytes) and the schedule's record",
    ),
    "schedule_runs": (
        "hash",
        "schedule -> its last 20 runs, each with tick, trigger, outcome and duration in ms; "
        "! -> the last schedules that missed a tick",
    ),
    "next_ticks": ("zset", "stored schedules by next tick (us)"),
    "cancels": (
        "hash",
        "id of a task whose cancellation was requested, or which is kept as cancelled -> its "
        "retention (us), or empty",
    ),
    "progress": (
        "hash",
        "id -> <done>/<total>, or @<us>, the time at which the task became runnable",
    ),
    "wake": ("list", "at most one element, for which servers with a free slot block"),
    "idle": ("zset", "ids of idle servers that a message wakes, by the time (us) they registered"),
    "meta": (
        "hash",
        "paused, weight:<fairness key>, v, swept, day, and cursors of sweeps; schema: layout of "
        "these keys, which scripts check (2 with flow control, 1 if missing); generation: server "
        "and time of the first fetch, <server id>@<time (us)>, which changes if the data are lost",
    ),
    "successors": (
        "hash",
        "id of an active task -> due time (us), member and message of its next run",
    ),
    "waiters": (
        "zset",
        "limited tasks, except the first waiters of a limit, in the order of their bytes: the "
        "limit that the task waits for or @<type>, a zero byte, the order tag as 8 bytes, and "
        "perhaps the id; all scores are 0",
    ),
    "holds": (
        "hash",
        "id of an unfinished task that does not wait for a limit -> its limits, separated by zero "
        "bytes",
    ),
    "limits": (
        "hash",
        "limit -> <in use> <ready> <tat (us)> <closed until (us)>, and its first waiters",
    ),
    "limit_rules": (
        "hash",
        "<name> -> rule of the program; !<name or limit> -> rule of an operator; @ -> paused "
        "types, separated by zero bytes; @<type> -> start (us), operator and reason of the pause",
    ),
    "openings": ("zset", "limits by the time (us) at which their first waiter can be tried"),
    "events": (
        "stream",
        "the last 500 actions of operators: time (us), how many tasks changed, their ids, key and "
        "record",
    ),
    "stats": ("hash", "counters; <counter>:<day number> has one day's counts, for 90 days"),
    "type_reports": (
        "hash",
        "<minute>:<server> -> counts by type; with prefix s, slow runs; with prefix v, a start",
    ),
    "type_stats": (
        "hash",
        "# -> directory of types; m<hour>:<type> -> the type's minutes, for 48 h; h<day>:<type> -> "
        "its hours, for 90 days; s:<type> -> its slowest runs; v -> starts of servers",
    ),
}
"""Keys of a queue. All keys are structural, i.e. they have no time to live."""

DONE_CHANNEL: Final = "done"
"""Sharded channel of a queue on which the ids of ended tasks are published."""

WAKE_CHANNELS: Final = "wake:*"
"""Pattern of a queue's sharded channels that wake servers; each server has one channel."""

COUNTERS: Final = (
    "enqueued", "completed", "failed", "retried", "crashed", "dead", "cancelled", "trimmed",
    "lost", "dropped", "bytes",
)  # fmt: skip
"""Fields of `stats`, which never decrease. `bytes` is the total size of the accepted messages."""


def check_name(field_name: str, value: object) -> str:
    """Check and return the name of a prefix or queue.

    Raise InvalidTask if the name is not valid.
    """
    if not isinstance(value, str) or NAME.fullmatch(value) is None:
        raise InvalidTask(
            phrase(
                "%(field)s: %(value)s is not 1 to 128 characters of A-Z a-z 0-9 _ . -",
                field=field_name, value=shorten(value),
            )
        )  # fmt: skip
    return value


def check_id(value: object) -> str:
    """Check and return a task id. Raise InvalidTask if the id is not valid."""
    if isinstance(value, str) and len(value) > ID_LENGTH:
        raise InvalidTask(
            phrase(
                "id: %(value)s has %(length)s characters, more than the maximum of %(limit)s",
                value=shorten(value), length=str(len(value)), limit=str(ID_LENGTH),
            )
        )  # fmt: skip
    if not isinstance(value, str) or TASK_ID.fullmatch(value) is None:
        raise InvalidTask(
            phrase(
                "id: %(value)s is not 1 to 128 printable ASCII characters without spaces",
                value=shorten(value),
            )
        )
    return value


def server_of_token(token: str) -> str:
    """Return the server id in a lease token, `<server id>[~<life>]/<fetch number>`."""
    return holder_of_token(token).partition("~")[0]


def holder_of_token(token: str) -> str:
    """Return the part `<server id>[~<life>]` of a lease token; `fetches` has a field with this
    name."""
    return token.rpartition("/")[0]


@dataclass(frozen=True, slots=True)
class QueueKeys:
    """The key names of one queue."""

    prefix: str
    queue: str
    base: str = field(init=False)
    done: str = field(init=False)

    def __post_init__(self) -> None:
        check_name("prefix", self.prefix)
        check_name("queue", self.queue)
        object.__setattr__(self, "base", f"{{{self.prefix}:{self.queue}}}")
        object.__setattr__(self, "done", f"{self.base}:{DONE_CHANNEL}")

    def key(self, name: str) -> str:
        """Return the full name of a key of this queue."""
        return f"{self.base}:{name}"

    def wake_channel(self, server: str) -> str:
        """Return the sharded channel that wakes a server for this queue."""
        return f"{self.base}:wake:{server}"

    def names(self, keys: tuple[str, ...]) -> tuple[str, ...]:
        """Return the full names of several keys of this queue, in order."""
        return _names(self.base, keys)


@lru_cache(maxsize=4096)
def _names(base: str, keys: tuple[str, ...]) -> tuple[str, ...]:
    return tuple([f"{base}:{name}" for name in keys])


def hash_tag(key: str) -> str:
    """Return the part of a key that all keys of its queue share."""
    return key.rpartition(":")[0]


def names_beside(key: str, keys: tuple[str, ...]) -> tuple[str, ...]:
    """Return the full names of several keys of the queue to which `key` belongs, in order."""
    return _names(hash_tag(key), keys)


@lru_cache(maxsize=1024)
def queue_keys(prefix: str, queue: str) -> QueueKeys:
    """Return the key names of a queue; the result is cached."""
    return QueueKeys(prefix, queue)


@dataclass(frozen=True, slots=True)
class GlobalKeys:
    """The names of the keys that belong to no queue."""

    prefix: str

    def __post_init__(self) -> None:
        check_name("prefix", self.prefix)

    @property
    def queues(self) -> str:
        """Key of the set of all queue names."""
        return f"{self.prefix}:queues"

    @property
    def servers(self) -> str:
        """Key of the sorted set of server ids, by the time (us) until which each counts as live."""
        return f"{self.prefix}:servers"

    @property
    def schedule_queues(self) -> str:
        """Key of the hash that lists queues with stored schedules.

        Servers check a queue when the queue's number in the hash changes.
        """
        return f"{self.prefix}:schedule_queues"

    @property
    def events(self) -> str:
        """Key of the stream of operators' actions that belong to no queue."""
        return f"{self.prefix}:events"

    @property
    def lasting(self) -> tuple[str, ...]:
        """The keys without a time to live."""
        return self.queues, self.servers, self.schedule_queues, self.events

    def server(self, server_id: str) -> str:
        """Return the key of the hash that describes a server; this key has a time to live."""
        return f"{self.prefix}:server:{server_id}"

    def inbox(self, server_id: str) -> str:
        """Return the key of the list of orders to a server (cancel, stack, quiet, stop); this key
        has a time to live."""
        return f"{self.prefix}:inbox:{server_id}"
