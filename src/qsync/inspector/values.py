"""The inspector's return values: frozen structs that `msgspec.json.encode` accepts as they are."""

from __future__ import annotations

from datetime import date, datetime
from typing import Any, Final, Literal

import msgspec

from qsync import codec
from qsync.bounds import QueueBounds
from qsync.message import NORMAL_PRIORITY
from qsync.phrase import Phrase
from qsync.schedule import every_phrase
from qsync.state import TaskState


class Died(msgspec.Struct, frozen=True, kw_only=True):
    """The dead tasks of a queue that no operator has acknowledged, and when they died."""

    number: int
    first_at: datetime
    last_at: datetime


class Pause(msgspec.Struct, frozen=True, kw_only=True):
    """A pause of a queue, a schedule or a type: the operator, the reason, and the time by the
    store's clock."""

    by: str
    why: str
    at: datetime | None


class Day(msgspec.Struct, frozen=True, kw_only=True):
    """The counters of one day (UTC, by the store's clock), named as in `qsync.keys.COUNTERS`."""

    day: date
    counters: dict[str, int]


class QueueInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A queue at one moment.

    latency   seconds that the oldest pending task has waited since it was enqueued, became due, or
              was handed back, recovered or run again; 0 if no task is pending
    bytes     approximate memory of the queue in the store; None if the store does not report it
    counters  totals since the queue was created; `today` has the totals of the current day
    days      one entry per requested day, latest first; days without activity are left out
    rate      attempts ended per second since this inspector's earlier reading; None at the first
              reading
    bounds    bounds that the program and an operator set, and how full the queue is
    latency_target   maximum time that the oldest pending task should wait, in seconds
    died      dead tasks that no operator has acknowledged; None if there are none
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
    bounds: QueueBounds = QueueBounds()
    latency_target: float | None = None
    died: Died | None = None

    @property
    def is_late(self) -> bool:
        """Whether the oldest pending task waits longer than the latency target."""
        return self.latency_target is not None and self.latency > self.latency_target

    @property
    def total(self) -> int:
        """Number of tasks in all states."""
        return sum(self.states.values())


class Filter(msgspec.Struct, frozen=True, kw_only=True):
    """Selects the tasks that match all fields that are set.

    type        the exact type; with `*` or `?`, a pattern (`mail.*`)
    error       text in the last error; case is ignored
    id          text in the id
    older_than  minimum age in seconds; a dead task's age counts from its death, any other task's
                age from its enqueue
    newer_than  maximum age in seconds, counted in the same way
    group       id of an ErrorGroup
    key         the exact fairness key; with `*` or `?`, a pattern
    args        (path, value) pairs of arguments, such as `("order.lines.0", "7")`; the value may be
                a pattern. Tasks of more than 16 KiB never match, since their payload is not read.
    words       strings that must each be in the id, the type or the last error; case is ignored
    """

    type: str | None = None
    error: str | None = None
    id: str | None = None
    older_than: float | None = None
    newer_than: float | None = None
    group: str | None = None
    key: str | None = None
    args: tuple[tuple[str, str], ...] = ()
    words: tuple[str, ...] = ()


class TaskRow(msgspec.Struct, frozen=True, kw_only=True):
    """A task in a list. A time is None in states to which it does not apply.

    type         empty if the message cannot be read
    size         size of the message in bytes
    attempts     number of failed attempts so far
    error        first line of the last error, at most 200 characters
    due_at       when a scheduled or retry task is due
    lease_until  when the lease of an active task expires; `server` is the server that holds it
    progress     (done, total) of an active or completed task, as its handler reported it
    died_at      when a dead task died
    kept_until   when a completed task will be deleted
    ended_at     when a completed task ended
    cancelled    whether a cancellation was requested, or has ended the task
    priority     1 to 9, by default 5; pending tasks with a higher priority start first
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
    priority: int = NORMAL_PRIORITY

    @property
    def ended_attempts(self) -> int:
        """Number of attempts that have ended: those that failed, and the one that completed."""
        return self.attempts + (self.state is TaskState.COMPLETED)


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """A part of the tasks in a state.

    Only the last page has the cursor None. Any page may hold fewer tasks than requested, or even
    none. `total` is the number of tasks in the state, regardless of the filter. `scanned` is the
    number of tasks read for this page. `unread` is the number of tasks whose payload was too large
    to be searched for arguments.
    """

    tasks: list[TaskRow]
    cursor: str | None
    total: int
    scanned: int
    unread: int = 0


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """A failed attempt: its number, when and on which server it failed, and the error's first line.

    `begun_at` is the time at which the handler began, by the clock of the server; None if unknown.
    The numbers of attempts restart at 1 when a dead task is run again.
    """

    number: int
    at: datetime
    server: str
    error: str
    begun_at: datetime | None = None


_EVENT_LABELS: Final = {
    "leased until": "lease expires",
    "kept until": "deleted after",
    "cancel asked for": "cancel requested",
    "handed back": "returned to queue",
}


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """An event of a task, past or future. `at` is None if the time is unknown.

    If qsync, not the program, wrote the detail, `phrase` holds `detail` as a template and its
    values.

    what  enqueued | due | failed | leased until | died | completed | cancelled | kept until |
          cancel asked for | deadline | crashed | handed back | snoozed
    """

    at: datetime | None
    what: str
    detail: str = ""
    phrase: Phrase | None = None

    @property
    def label(self) -> str:
        """Readable name of the event."""
        return _EVENT_LABELS.get(self.what, self.what)


class Shown(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes in readable form; the text is not escaped for HTML or a terminal.

    kind  value: decoded from msgpack, written as JSON or as Python's repr; json: JSON text,
          indented; text: as it is; binary: a hexadecimal dump
    cut   whether the text is incomplete
    """

    kind: Literal["value", "json", "text", "binary"]
    text: str
    cut: bool = False


class Edit(msgspec.Struct, frozen=True, kw_only=True):
    """An edit of a payload: the time, the operator, and the payload before the edit."""

    at: datetime
    by: str
    payload: bytes
    shown: Shown


class TaskDetail(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that the store holds about a task.

    row           the task as in a list
    payload       its bytes, msgpack if `is_value`; `shown` is the same in readable form
    attempt       number of the current or the next attempt
    error         full text of the last error, with its traceback
    result        result of the handler; None until there is one
    timeout, retention, retry_delay   seconds (`retry_delay` may be text); None if not set
    retry_phrase  `retry_delay` as a template and its values, if it is text
    lock          name of the unique lock; `lock_holder` is the task that holds it
    replaces      whether the task was enqueued with on_duplicate="replace", so that later calls
                  with the same lock replace it
    debounce, debounce_max   seconds; None if not set
    next_run_at   when the task runs again after the current attempt, with the payload of a later
                  call
    snoozes       number of times that its handler asked to run later
    message_error   why the message cannot be read
    edits         up to the last five edits of the payload, the oldest first
    begun_at      for a completed task: when the handler began, by the clock of its server
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
    limits: list[str]
    fairness_key: str | None
    lock: str | None
    lock_holder: str | None
    replaces: bool
    debounce: float | None
    debounce_max: float | None
    next_run_at: datetime | None
    snoozes: int
    unknown_since: datetime | None
    unknown_times: int
    message_error: str | None
    retry_phrase: Phrase | None = None
    edits: list[Edit] = []
    begun_at: datetime | None = None

    def value(self) -> Any:
        """Return the decoded payload, or its bytes if they are not a value. Raises CodecError."""
        return codec.decode(self.payload) if self.is_value else self.payload


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome of a requested change.

    done       the change was made, perhaps by an earlier attempt of the call
    told       the server was told to cancel a running task, to be quiet or to stop
    duplicate  for `run` and `trigger`: another task, `holder`, holds the unique lock
    too_late   the task is no longer in the state in which it was seen; `state` is its current state
    not_found  there is no such task, queue, schedule or server
    refused    `why` gives the reason

    `at` is the new due time of a task that was rescheduled; `id` and `queue` identify a copy.
    `phrase` holds `why` as a template and its values, so that a page can translate it.
    """

    outcome: Literal["done", "told", "duplicate", "too_late", "not_found", "refused"]
    state: TaskState | None = None
    holder: str | None = None
    server: str | None = None
    why: str | None = None
    at: datetime | None = None
    phrase: Phrase | None = None
    id: str | None = None
    queue: str | None = None

    @property
    def ok(self) -> bool:
        """Whether the change was made, or a server was told to make it."""
        return self.outcome in ("done", "told")


def refused(why: Phrase | str, **fields: Any) -> Change:
    """Return the outcome of a refused change, with the reason."""
    phrase = why if isinstance(why, Phrase) else None
    return Change(outcome="refused", why=str(why), phrase=phrase, **fields)


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One bounded step of a bulk change.

    scanned    tasks read
    done       tasks changed
    duplicate  dead tasks that stay dead because another task holds their lock
    too_late   tasks that left the state while the step ran
    unread     tasks whose payload was too large to be searched for arguments
    cursor     position from which the next step continues; None after the last step
    """

    scanned: int
    done: int
    duplicate: int = 0
    too_late: int = 0
    unread: int = 0
    cursor: str | None

    def __add__(self, later: Step) -> Step:
        """Return the sum of this step and a later one, with the later step's cursor."""
        return Step(
            scanned=self.scanned + later.scanned,
            done=self.done + later.done,
            duplicate=self.duplicate + later.duplicate,
            too_late=self.too_late + later.too_late,
            unread=self.unread + later.unread,
            cursor=later.cursor,
        )


class Forgotten(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome of a request to forget a queue.

    done       the queue is gone
    more       some tasks were deleted, but others remain; call again
    not_empty  the queue holds `left` tasks and stored schedules
    served     a live server, `server`, takes tasks from the queue and would create it again
    running    `left` tasks of the queue are running
    not_found  there is no such queue
    """

    outcome: Literal["done", "more", "not_empty", "served", "running", "not_found"]
    deleted: int = 0
    left: int = 0
    server: str | None = None


class RunningTask(msgspec.Struct, frozen=True, kw_only=True):
    """A task on which a server holds a lease; the handler may not have started yet."""

    id: str
    queue: str
    type: str
    lease_until: datetime
    progress: tuple[float, float] | None


class ServerInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A live server, as of its last report; servers report twice per lease time.

    version      version of qsync
    app_version  version of the program, `Qsync(version=...)` or QSYNC_VERSION; empty if not set
    uptime       time since the server started, in seconds
    queues       weights of the queues that it serves, by queue
    types        task types for which it has handlers
    tasks        tasks on which it holds leases, as far as they were read
    complete     whether `tasks` holds all of them
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
    app_version: str = ""


class ScheduleInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A periodic task of a program, as servers published it, or a schedule that a client stored.

    stored    whether a client put it into the store
    schedule  the schedule in readable form, e.g. `*/5 * * * * (Europe/Moscow)` or `every 30 s`;
              `phrase` holds the same as a template and its values
    next_at   the next ticks, at most three; while the schedule is paused, they pass without a task
    last_tick the last tick that was enqueued, or that passed while paused
    seen_at   when a server last published it; for a stored schedule, when it was stored or resumed
    live      whether a server published it in the last three minutes; True for a stored schedule
    type      type of its task
    problem   why the next ticks cannot be computed
    last_task, last_state   the task of the last tick and its state, if the store still has it
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
    stored: bool = False

    @property
    def phrase(self) -> Phrase | str:
        """The schedule as a template and its values, so that a page can translate it."""
        return self.schedule if self.every is None else every_phrase(self.every)
