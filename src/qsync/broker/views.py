"""The operations that read the store without changing it, one pure function per script."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from qsync.bounds import QueueBounds
from qsync.broker.call import Argument, Call, now_argument, queue_call, queue_query, text_of
from qsync.broker.queue_replies import bounds_in, counters_of, separate_cancelled
from qsync.broker.script import load
from qsync.broker.stored_task import StoredTask, number, score_us
from qsync.keys import COUNTERS, NAME_LIMIT, GlobalKeys, QueueKeys
from qsync.state import STORED, TaskState


def get_tasks(
    keys: QueueKeys, ids: Sequence[str], *, messages: bool = True
) -> Call[list[StoredTask | None]]:
    """Read tasks, in order; None stands for a task that is not in the queue.

    With `messages=False`, existing messages and next runs are returned as empty bytes. A caller
    that only waits for a task to end does not need messages, which may be large.
    """
    return queue_call("get_tasks", keys, ("1" if messages else "", *ids), _shown)


def _shown(reply: Any) -> list[StoredTask | None]:
    return [_decode_row(row) if row else None for row in reply]


def _decode_row(row: list[Any]) -> StoredTask:
    state, score, message, owner, crashes, failure, result, cancel, progress, successor = row
    return StoredTask(
        TaskState(state.decode()), int(score), message,
        None if owner is None else owner.decode(errors="backslashreplace"),
        crashes, failure, result, cancel, progress, successor,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Counts:
    """The sizes of a queue: tasks by state in `states`, entries of other keys in `others`.

    `stats` holds the counters (qsync.keys.COUNTERS). Counters per day are named
    `<counter>:<day number>`.
    """

    states: dict[TaskState, int]
    others: dict[str, int]
    stats: dict[str, int]


def permissions(keys: QueueKeys, commands: Sequence[str]) -> Call[list[str]]:
    """Return the commands that the connection's user may not run on a queue."""
    return queue_call("permissions", keys, commands, lambda reply: [n.decode() for n in reply])


def counts(keys: QueueKeys) -> Call[Counts]:
    """Read the sizes and counters of a queue; all are 0 if the queue does not exist."""
    script = load("counts")

    def decode(reply: Any) -> Counts:
        sizes = dict(zip(script.keys, map(int, reply[0]), strict=False))
        states = separate_cancelled({state: sizes.pop(state.value) for state in STORED}, reply[2])
        return Counts(states, sizes, counters_of(reply[1], reply[3]))

    return Call(script, keys.names(script.keys), (), decode)


class TruncatedMessage(NamedTuple):
    """A message, perhaps truncated, and its full length; `qsync.broker.truncated` decodes it."""

    data: bytes
    length: int


@dataclass(frozen=True, slots=True)
class QueueSnapshot:
    """A snapshot of a queue. `memory` is in bytes; None when the store does not report it.

    `first` holds the messages and failure records of the first pending tasks. `first` leaves out
    tasks for which the store has the time at which they became runnable; `since_us` is the earliest
    of these times.
    """

    now_us: int
    states: dict[TaskState, int]
    memory: int | None
    pause_note: bytes | None
    paused_at_us: int
    first: list[tuple[TruncatedMessage, bytes]]
    since_us: int | None
    stats: dict[str, int]
    bounds: QueueBounds
    latency_target_us: int | None
    died: tuple[int, int, int]
    """Dead tasks that no operator has acknowledged: their number, and the times of the first and
    last death in us."""


def overview(keys: QueueKeys, *, days: int = 1, now_us: int | None = None) -> Call[QueueSnapshot]:
    """Read a snapshot of a queue, with its counters in total and for the last `days` days.

    Today counts as one of these days.
    """
    script = load("overview")
    now = now_argument(now_us)

    def decode(reply: Any) -> QueueSnapshot:
        fields = script.reply(reply)
        sizes, since = zip(script.keys, fields["sizes"], strict=False), fields["runnable_since"]
        stored, died = {TaskState(name): size for name, size in sizes}, fields["died"]
        return QueueSnapshot(
            now_us=int(fields["now"]),
            states=separate_cancelled(stored, fields["cancelled"]),
            memory=None if fields["memory"] < 0 else fields["memory"],
            pause_note=fields["pause_note"] or None,
            paused_at_us=number(fields["paused_at"]),
            first=[
                (TruncatedMessage(message, length), failure)
                for message, length, failure in fields["first"]
            ],
            since_us=int(since) if since else None,
            stats=counters_of(fields["counters"], fields["tally"]),
            bounds=bounds_in(stored, fields["bounds"]),
            latency_target_us=None if fields["target"] < 0 else fields["target"],
            died=(died[0], score_us(died[1] or b"0"), score_us(died[2] or b"0")),
        )

    return Call(script, keys.names(script.keys), (now, days, *COUNTERS), decode)


PageKey = tuple[str, str]
"""Position of a task in its state: its score, as the store writes it, and its id."""


@dataclass(frozen=True, slots=True)
class StoredTaskRow:
    """A task in a page. A long message is truncated in `shown`; `length` is its full length."""

    id: str
    place: PageKey
    length: int
    shown: StoredTask


@dataclass(frozen=True, slots=True)
class TaskPage:
    """A page of the tasks in a state; `more` tells whether other tasks follow."""

    now_us: int
    total: int
    more: bool
    rows: list[StoredTaskRow]


def list_tasks(
    keys: QueueKeys,
    state: TaskState,
    *,
    count: int,
    after: PageKey | None = None,
    backwards: bool = False,
    now_us: int | None = None,
) -> Call[TaskPage]:
    """Read up to `count` tasks of a state that follow `after`, or fewer if they are large."""
    score, id = after or ("", "")
    args: tuple[Argument, ...] = (
        now_argument(now_us), state.value, count, "1" if backwards else "",
        score, _raw(id),
    )  # fmt: skip

    def decode(fields: dict[str, Any]) -> TaskPage:
        rows = [_row(state, row) for row in fields["rows"]]
        return TaskPage(int(fields["now"]), fields["total"], bool(fields["more"]), rows)

    return queue_query("list_tasks", keys, args, decode)


def _row(state: TaskState, row: list[Any]) -> StoredTaskRow:
    id, score, length, message, owner, crashes, failure, cancel, progress = row
    size = int(length)
    shown = StoredTask(
        state,
        score_us(score),
        message if size else None,
        None if owner is None else owner.decode(errors="backslashreplace"),
        crashes, failure, None, cancel, progress,
    )  # fmt: skip
    place = score.decode(), id.decode(errors="surrogateescape")
    return StoredTaskRow(id.decode(errors="backslashreplace"), place, size, shown)


class WorkCheck(NamedTuple):
    """What work a queue has for a server."""

    generation: str | None
    """Generation of the queue's data; None before the first fetch."""
    waits: bool
    """Whether tasks can be fetched."""
    due: bool
    """Whether upkeep is due."""


def check_for_work(keys: QueueKeys, *, lease_us: int, now_us: int | None = None) -> Call[WorkCheck]:
    """Read whether a queue has work for a server."""
    return queue_call(
        "check_for_work",
        keys,
        (now_argument(now_us), lease_us),
        lambda reply: WorkCheck(text_of(reply[0]) or None, bool(reply[1]), bool(reply[2])),
    )


class QueueNames(NamedTuple):
    """A part of the names of the queues in use, unordered."""

    names: list[str]
    total: int
    cursor: str
    """Cursor of the next part; "0" after the last one."""

    @property
    def more(self) -> int:
        """Return the total number of queues if other parts follow, else 0."""
        return 0 if self.cursor == "0" else self.total


def queues(keys: GlobalKeys, *, count: int = 1000, cursor: str = "0") -> Call[QueueNames]:
    """Read about `count` names of queues in use, from `cursor` on."""

    def decode(reply: Any) -> QueueNames:
        after, total, names = reply
        texts = [name.decode(errors="backslashreplace") for name in names]
        return QueueNames(texts, int(total), after.decode())

    return Call(load("queues"), (keys.queues,), (cursor, count, NAME_LIMIT), decode)


def registered(keys: GlobalKeys, queue: str) -> Call[bool]:
    """Read whether a queue is in use."""
    return Call(load("registered"), (keys.queues,), (queue,), bool)


def servers(
    keys: GlobalKeys, *, count: int = 1000, now_us: int | None = None
) -> Call[tuple[int, dict[str, int]]]:
    """Read the store's time and the expiry time of each live server.

    The server that expires first comes first.
    """
    args = (now_argument(now_us), count)

    def decode(reply: Any) -> tuple[int, dict[str, int]]:
        now, live = reply
        pairs = zip(live[::2], live[1::2], strict=True)
        return int(now), {id.decode(errors="backslashreplace"): score_us(t) for id, t in pairs}

    return Call(load("servers"), (keys.servers,), args, decode)


def server_info(keys: GlobalKeys, server: str) -> Call[dict[str, bytes]]:
    """Read a server's description of itself; empty if it has stopped or its record expired."""

    def decode(reply: Any) -> dict[str, bytes]:
        pairs = zip(reply[::2], reply[1::2], strict=True)
        return {name.decode(errors="backslashreplace"): value for name, value in pairs}

    return Call(load("server_info"), (keys.server(server),), (), decode)


@dataclass(frozen=True, slots=True)
class Published:
    """A schedule as servers published it. `task` is None when it was not requested."""

    name: str
    record: bytes
    seen_at_us: int
    pause_note: bytes | None
    """Start of the pause in us, a space, and a note that says who paused the schedule and why; None
    if the schedule is not paused."""
    last_tick_us: int
    task: bytes | None


def schedules(
    keys: QueueKeys, name: str = "", *, now_us: int | None = None
) -> Call[tuple[int, list[Published]]]:
    """Read the store's time and a queue's schedules; with `name`, only that schedule and its
    task."""
    args = (now_argument(now_us), name)

    def decode(reply: Any) -> tuple[int, list[Published]]:
        now, rows = reply
        return int(now), [
            Published(
                id.decode(errors="backslashreplace"), record or b"", number(seen), note,
                number(tick), task,
            )
            for id, record, seen, note, tick, task in rows
        ]  # fmt: skip

    return queue_call("schedules", keys, args, decode)


@dataclass(frozen=True, slots=True)
class AuditRow:
    """The keys of a queue in which an audit found an id, all read at the same moment."""

    id: str
    states: tuple[str, ...]
    beside: tuple[str, ...]
    """Names of the hashes that have an entry for the id."""
    lock: str
    """Lock that the task holds according to its own entry; empty if there is none."""
    holder: str
    """Id that holds the lock according to the lock's entry."""
    claim: str
    """Lock that names the id as its holder, if the audit found the id through that lock. For an
    invalid entry among the locks, `claim` is the name of the entry, and the id is empty."""
    message: bytes | None
    """Message of the task; set only if `claim` is not the task's own lock."""


def audit(
    keys: QueueKeys, source: str, *, cursor: str = "0", count: int = 100
) -> Call[tuple[str, list[AuditRow]]]:
    """Scan a part of a key; return the next cursor ("0" at the end) and a row per id."""
    return _audit(keys, (source, cursor, count))


def stand(keys: QueueKeys, rows: Sequence[tuple[str, str]]) -> Call[tuple[str, list[AuditRow]]]:
    """Look up ids. `rows` are pairs of an id and the lock that names the id as its holder, or "" if
    no lock does."""
    return _audit(keys, ("", "0", 0, *[_raw(value) for row in rows for value in row]))


def _raw(text: str) -> bytes:
    """Return the stored bytes of an id that an audit found, even if they are not valid UTF-8."""
    return text.encode(errors="surrogateescape")


def _audit(keys: QueueKeys, args: tuple[Argument, ...]) -> Call[tuple[str, list[AuditRow]]]:
    return queue_call("audit", keys, args, _standing)


def _standing(reply: Any) -> tuple[str, list[AuditRow]]:
    cursor, rows = reply
    standing = []
    for *texts, message in rows:
        id, states, beside, lock, holder, claim = (
            text.decode(errors="surrogateescape") for text in texts
        )
        row = AuditRow(
            id, tuple(states.split()), tuple(beside.split()), lock, holder, claim, message or None
        )
        standing.append(row)
    return cursor.decode(), standing


def key_types(keys: QueueKeys) -> Call[tuple[dict[str, str], int]]:
    """Read the type of each existing key of the queue, and the length of its wake list."""
    script = load("key_types")

    def decode(reply: Any) -> tuple[dict[str, str], int]:
        kinds = {name: kind.decode() for name, kind in zip(script.keys, reply[0], strict=True)}
        return {name: kind for name, kind in kinds.items() if kind != "none"}, int(reply[1])

    return Call(script, keys.names(script.keys), (), decode)


@dataclass(frozen=True, slots=True)
class PendingPosition:
    """What delays a task. `rank` is the number of tasks before it in `pending`, or None if it is
    not pending.

    `holder` is the task that holds its unique lock; `fetched_at_us` and `fetch_number` are from the
    last fetch of its server.
    """

    now_us: int
    rank: int | None
    pending: int
    holder: str | None
    fetched_at_us: int
    fetch_number: int
    pause_note: bytes | None
    paused_at_us: int
    ended: int
    """Number of attempts that have ended in the queue so far."""
    above: int = 0
    """Number of pending tasks with a higher priority."""
    next_run_us: int | None = None
    """Due time, in us, of the task's next run, which has the payload of a later call; None if there
    is no next run."""


def pending_position(
    keys: QueueKeys, id: str, *, lock: str = "", server: str = "", now_us: int | None = None
) -> Call[PendingPosition]:
    """Read what delays a task."""
    args = (now_argument(now_us), id, lock, server)

    def decode(row: dict[str, Any]) -> PendingPosition:
        rank, holder = row["rank"], row["holder"].decode(errors="backslashreplace")
        return PendingPosition(
            row["now"], None if rank < 0 else rank, row["pending"], holder or None,
            number(row["fetched_at"]), number(row["fetch_number"]), row["pause_note"] or None,
            number(row["paused_at"]), number(row["completed"]) + number(row["failed"]),
            row["above"], number(row["next_run"]) or None,
        )  # fmt: skip

    return queue_query("pending_position", keys, args, decode)
