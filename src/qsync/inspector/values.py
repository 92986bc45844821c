"""What an inspector answers: frozen values that `msgspec.json.encode` takes as they are."""

from __future__ import annotations

from datetime import date, datetime
from typing import Any, Literal

import msgspec

from qsync import codec
from qsync.state import TaskState


class Pause(msgspec.Struct, frozen=True, kw_only=True):
    """Who paused a queue or a schedule, why, and when by the store's clock."""

    by: str
    why: str
    at: datetime | None


class Day(msgspec.Struct, frozen=True, kw_only=True):
    """The counters of a day, in UTC by the store's clock; names as in `qsync.keys.COUNTERS`."""

    day: date
    counters: dict[str, int]


class QueueInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A queue at one moment.

    latency   seconds that the oldest pending task has waited since its enqueue or due time, or
              since it was handed back, recovered or run again; 0 when none is pending
    bytes     what the queue takes of the store's memory, about; None where the store won't say
    counters  since the queue began; `today` the same for this day
    days      one for each day asked for, the latest first; days without anything are left out
    rate      attempts that ended per second, since this inspector looked before; None at first
    """

    name: str
    states: dict[TaskState, int]
    latency: float
    bytes: int | None
    paused: Pause | None
    counters: dict[str, int]
    today: dict[str, int]
    days: list[Day]
    rate: float | None

    @property
    def total(self) -> int:
        """The tasks in all states."""
        return sum(self.states.values())


class Overview(msgspec.Struct, frozen=True, kw_only=True):
    """Queues, by name, and the ids of the servers that live; `at` is the store's time.

    `total` is how many queues there are. With more than about a thousand, `queues` are a part of
    them, and `overview(cursor=...)` reads the next.
    """

    at: datetime
    queues: list[QueueInfo]
    servers: list[str]
    total: int = 0
    cursor: str | None = None

    @property
    def more(self) -> int:
        """How many queues are not among these."""
        return max(0, self.total - len(self.queues))


class Filter(msgspec.Struct, frozen=True, kw_only=True):
    """Which tasks are meant: those that fit all that is given.

    type        the whole name; with `*` or `?` in it, a pattern (`mail.*`)
    error       a part of the last error's text, whatever its case
    id          a part of the id
    older_than  seconds: since the death of dead tasks, since the enqueue of others
    newer_than  seconds, the same
    """

    type: str | None = None
    error: str | None = None
    id: str | None = None
    older_than: float | None = None
    newer_than: float | None = None


class TaskRow(msgspec.Struct, frozen=True, kw_only=True):
    """A task in a list. Times are None where the state has none.

    type       empty when the message cannot be read
    size       bytes of the message
    attempts   that failed so far
    error      the first line of the last error, 200 characters at most
    due_at     of scheduled and retry
    lease_until, server, progress   of active; progress is (done, total)
    died_at    of dead
    kept_until of completed, when it is deleted
    ended_at   of completed
    cancelled  its cancel was asked for, or it ended so
    """

    id: str
    queue: str
    state: TaskState
    type: str
    size: int
    enqueued_at: datetime | None
    attempts: int
    retry: int
    crashes: int
    error: str | None
    due_at: datetime | None
    lease_until: datetime | None
    server: str | None
    progress: tuple[float, float] | None
    died_at: datetime | None
    kept_until: datetime | None
    cancelled: bool
    ended_at: datetime | None = None


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """A part of the tasks in a state.

    It may hold fewer tasks than were asked for, none even, and still not be the last one: that is
    the one whose `cursor` is None. `total` is how many are in the state, whatever the filter;
    `scanned` how many were looked at for this page.
    """

    tasks: list[TaskRow]
    cursor: str | None
    total: int
    scanned: int


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """A failed attempt: its number, when it failed, on which server, and the error's first line.

    Numbers begin anew after a dead task is run again.
    """

    number: int
    at: datetime
    server: str
    error: str


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happened to a task, or that will. `at` is None when nobody knows when.

    what  enqueued | due | failed | leased until | died | completed | cancelled | kept until |
          cancel asked for | deadline | crashed | handed back
    """

    at: datetime | None
    what: str
    detail: str = ""


class Shown(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes made readable; not escaped for anything.

    kind  value: decoded from msgpack and written as JSON or as Python writes it; json: text that
          is JSON, indented; text; binary: a dump of hexadecimal digits
    cut   the text is not all of it
    """

    kind: Literal["value", "json", "text", "binary"]
    text: str
    cut: bool = False


class TaskDetail(msgspec.Struct, frozen=True, kw_only=True):
    """All that the store has of a task.

    `row` is the task as in a list. `payload` are the bytes, which for a value are msgpack, and
    `shown` the same for reading. `error` is the whole text of the last error, traceback included.
    `attempt` is the number of the current or the next attempt. Durations are seconds; None: there
    is no such limit. `lock` is the name of its unique lock and `lock_holder` the task that has it.
    `result` is None until there is one. `message_error` says why the message cannot be read.
    """

    row: TaskRow
    payload: bytes
    is_value: bool
    shown: Shown
    headers: dict[str, str]
    attempt: int
    error: str | None
    history: list[Attempt]
    events: list[Event]
    result: Shown | None
    result_error: str | None
    token: str | None
    timeout: float | None
    retention: float | None
    retry_delay: float | str | None
    deadline: datetime | None
    fairness_key: str | None
    lock: str | None
    lock_holder: str | None
    unknown_since: datetime | None
    unknown_times: int
    message_error: str | None

    def value(self) -> Any:
        """The payload decoded, or its bytes when they are not a value. CodecError."""
        return codec.decode(self.payload) if self.is_value else self.payload


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a wish to change something.

    done       it is changed, or was so already by an earlier try
    told       `cancel` of a running task: its server has been told to stop it
    duplicate  `run`: another task, `holder`, has its unique lock
    too_late   it is not any more in the state in which it was seen; `state` is where it is now
    not_found  it is not there
    refused    `why` says why
    """

    outcome: Literal["done", "told", "duplicate", "too_late", "not_found", "refused"]
    state: TaskState | None = None
    holder: str | None = None
    server: str | None = None
    why: str | None = None

    @property
    def ok(self) -> bool:
        """Whether it is done, or will be."""
        return self.outcome in ("done", "told")


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One bounded step of work on many tasks. Pass `cursor` to the next step; None: all is done.

    scanned    tasks looked at
    done       tasks changed
    duplicate  dead ones that stay dead since another task has their lock
    too_late   tasks that somebody else changed meanwhile
    """

    scanned: int
    done: int
    duplicate: int = 0
    too_late: int = 0
    cursor: str | None

    def __add__(self, later: Step) -> Step:
        """Both steps as one."""
        return Step(
            scanned=self.scanned + later.scanned,
            done=self.done + later.done,
            duplicate=self.duplicate + later.duplicate,
            too_late=self.too_late + later.too_late,
            cursor=later.cursor,
        )


class Forgotten(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a wish to forget a queue.

    done       it is gone
    more       tasks were deleted, and there are more: call again
    not_empty  it holds `left` tasks
    served     a live server, `server`, takes from it and would bring it back
    running    `left` of its tasks run
    not_found  there is no such queue
    """

    outcome: Literal["done", "more", "not_empty", "served", "running", "not_found"]
    deleted: int = 0
    left: int = 0
    server: str | None = None


class RunningTask(msgspec.Struct, frozen=True, kw_only=True):
    """A task that a server holds a lease on; it may not have started yet."""

    id: str
    queue: str
    type: str
    lease_until: datetime
    progress: tuple[float, float] | None


class ServerInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A server that lives, as it last said, every third of its lease.

    uptime    seconds
    queues    weight by queue
    types     that it has handlers for
    tasks     what it holds leases on, as far as was looked at
    complete  whether `tasks` is all of it
    """

    id: str
    expires_at: datetime
    host: str
    pid: int
    version: str
    python: str
    uptime: float
    concurrency: int
    running: int
    quiet: bool
    queues: dict[str, int]
    types: list[str]
    tasks: list[RunningTask]
    complete: bool


class ScheduleInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A periodic task, as servers published it.

    schedule  for reading: `*/5 * * * * (Europe/Moscow)`, `every 30 s`
    next_at   the ticks to come, three at most; also of a paused one, whose ticks pass
    last_tick the last tick that was enqueued, or passed while it was paused
    seen_at   when a server last published it
    live      whether a server has published it within three minutes
    type      of its task
    problem   why the ticks to come cannot be told
    last_task, last_state   the task of the last tick and its state, where the store still has it
    """

    queue: str
    name: str
    schedule: str
    cron: str | None
    every: float | None
    tz: str | None
    missed: str
    type: str
    next_at: list[datetime]
    last_tick: datetime | None
    seen_at: datetime | None
    live: bool
    paused: Pause | None
    problem: str | None
    last_task: str | None = None
    last_state: TaskState | None = None


Reason = Literal[
    "next", "behind", "paused", "no_server", "no_server_knows", "all_quiet", "scheduled", "retry",
    "handed_back", "active", "lapsed", "completed", "cancelled", "dead", "duplicate", "not_found",
    "deadline",
]  # fmt: skip


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """Why a task is not running yet, and when it will be.

    sentence  all of it, for people
    reason    the main reason; `also` are further ones that hold as well
    at        when it is due, or has ended; None when that is not known
    rank      how many are before it in pending
    wait      seconds until its turn at the present rate, about
    rate      attempts that end per second in the queue, as this inspector saw lately
    server    that runs it, with the lease until `lease_until`
    servers   how many live servers would run it
    holder    the task that has its lock
    """

    id: str
    queue: str
    state: TaskState | None
    sentence: str
    reason: Reason
    also: list[Reason] = []
    at: datetime | None = None
    rank: int | None = None
    wait: float | None = None
    rate: float | None = None
    paused: Pause | None = None
    attempt: int = 0
    retry: int = 0
    crashes: int = 0
    error: str | None = None
    server: str | None = None
    since: datetime | None = None
    lease_until: datetime | None = None
    servers: int | None = None
    holder: str | None = None
