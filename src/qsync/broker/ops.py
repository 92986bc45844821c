"""The operations that change the store: one pure function per script.

Each function returns a Call, which a Broker runs. `now_us` is for tests: with None the script uses
the store's clock. A call takes at most MAX_TASKS_PER_CALL tasks; `batches` also keeps it within
BATCH_BYTES.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple, TypeVar, get_args

import msgspec
from msgspec.structs import replace

from qsync.broker.call import Argument, Call, Durability, Wait
from qsync.broker.enqueue_options import enqueue_options, fairness_member, need_flow
from qsync.broker.leased_batch import crash_count as crash_count
from qsync.broker.leased_batch import only_tasks, runnable_times, spared_crashes
from qsync.broker.script import load
from qsync.keys import GlobalKeys, QueueKeys
from qsync.message import ENVELOPE_HEAD, NORMAL_PRIORITY
from qsync.new_task import NewTask

T = TypeVar("T")

MAX_TASKS_PER_CALL: Final = 500
BATCH_BYTES: Final = 4 * 1024 * 1024

BATCH_SIZE: Final = 250
"""Tasks per batch: a larger batch is no cheaper per task and blocks the store for longer."""

MAINTENANCE_BATCH: Final = 100
"""Tasks per call that deletes or reruns tasks: small, so that urgent calls are not held up."""

SCHEDULE_SILENCE_US: Final = 180_000_000
"""Time without a publication after which a schedule may be gone, in microseconds."""

Outcome = Literal["ok", "done", "lost"]
"""Outcome of a change that needs a lease: `ok`: made; `done`: the task has no lease any more, since
it ended or was handed back; `lost`: another server holds the lease."""


EnqueueOutcome = Literal["created", "exists", "duplicate", "repeated", "replaced"]


class Enqueued(msgspec.Struct, frozen=True, gc=False):
    """The outcome of enqueueing one task. `id` is the task that holds the id or the unique lock.

    `repeated`: a task with this id was enqueued recently and has left the queue; `replaced`: the
    holder of the lock has this payload now, or runs again with it when its attempt has ended.

    `confirmed`: whether the durability wait succeeded in time; None without a wait.
    """

    outcome: EnqueueOutcome
    id: str
    confirmed: bool | None = None


class LeaseRef(NamedTuple):
    """A leased task: its id and the token of its lease."""

    id: str
    token: str


class Completion(msgspec.Struct, frozen=True, gc=False):
    """A task that succeeded. `retention_us` None: the task and its result are deleted at once."""

    id: str
    token: str
    retention_us: int | None = None
    result: bytes = b""


class Retried(NamedTuple):
    """A task whose attempt failed and that is retried after a delay."""

    id: str
    token: str
    delay_us: int
    failure: bytes


class Killed(NamedTuple):
    """A task that becomes dead. `failed`: whether an attempt failed; False: none was begun."""

    id: str
    token: str
    failed: bool
    failure: bytes


class HandedBack(NamedTuple):
    """A task that a server hands back without counting an attempt.

    `delay_us` None: the task goes to the head of pending. `limit`: a limit that is closed for
    `closed_us`: no task that holds it starts before. `started`: the handler began, so the start
    counts for the rates of its limits.
    """

    id: str
    token: str
    delay_us: int | None = None
    failure: bytes = b""
    limit: str = ""
    closed_us: int = 0
    started: bool = False


@dataclass(frozen=True, slots=True)
class FetchPolicy:
    """The part of the server's configuration that a fetch needs; times in microseconds."""

    lease_us: int
    max_crashes: int
    dead_limit: int
    dead_age_us: int
    max_bytes: int = BATCH_BYTES


class FetchResult(msgspec.Struct, frozen=True, kw_only=True):
    """The reply to a fetch. `ids`, `messages`, `failures` and `crashes` match by position."""

    now_us: int
    next_due_us: int | None
    """Time until the next task or upkeep is due, in microseconds; None when none is known."""
    more: bool
    """Whether upkeep has more to do."""
    recovered: int
    died: int
    """Number of tasks that became dead because they crashed too often."""
    ids: list[str]
    messages: list[bytes]
    failures: list[bytes | None]
    crashes: list[int]
    own_lapsed: list[str]
    paused: bool
    generation: str
    """Generation of the queue's data; it changes only when the data were lost."""
    left: bool = False
    """Whether more tasks can be fetched."""
    left_for_free: bool = False
    """Whether tasks are left that only a server with free slots can fetch."""
    spared: dict[str, int] = {}
    """Number of crashes that did not count, by id; only tasks with such crashes."""
    since: dict[str, int] = {}
    """Time at which a handed back, recovered or rerun task became runnable, in us, by id."""


def batches(
    items: Sequence[Any], size: Callable[[Any], int], most: int = BATCH_BYTES
) -> Iterator[Sequence[Any]]:
    """Split items into batches of at most BATCH_SIZE items and `most` bytes, at least one item."""
    if 0 < len(items) <= BATCH_SIZE and sum(map(size, items)) <= most:
        yield items
        return
    start = total = 0
    for at, item in enumerate(items):
        amount = size(item)
        if at > start and (at - start >= BATCH_SIZE or total + amount > most):
            yield items[start:at]
            start, total = at, 0
        total += amount
    if start < len(items):
        yield items[start:]


def enqueue(
    keys: QueueKeys,
    tasks: Sequence[NewTask],
    *,
    sender: str = "",
    number: int = 0,
    wait: Wait | None = None,
    now_us: int | None = None,
) -> Call[list[Enqueued]]:
    """Store new tasks of this queue; return one outcome per task, in order.

    A `sender` numbers its calls and has one in flight at a time. Its repeated call gets the same
    reply as the first, even if the tasks have left the queue by then. A call with a lower number
    than the last one of its sender does nothing and returns no outcomes.
    """
    options = [enqueue_options(task) for task in _batch(tasks)]
    script = load("enqueue", flow=need_flow(tasks))
    args: list[Argument] = [_now(now_us), ENVELOPE_HEAD, sender, number]
    if any(options):
        args.append(3)
        for task, packed in zip(tasks, options, strict=True):
            args += (task.id, task.message, packed)
    else:
        args.append(2)
        for task in tasks:
            args += (task.id, task.message)

    def decode(reply: Any) -> list[Enqueued]:
        answer, confirmed = (reply, None) if wait is None else reply
        if answer == b"created":
            return [Enqueued("created", task.id, confirmed) for task in tasks]
        return _enqueued(answer, confirmed)

    return Call(script, keys.names(script.keys), tuple(args), decode, wait)


def wait(keys: QueueKeys, durability: Durability, *, timeout_ms: int) -> Wait:
    """Return the durability wait that follows a call on this queue, limited to `timeout_ms`."""
    script = load("wait_marker")
    return Wait(durability, timeout_ms, Call(script, keys.names(script.keys), (), int))


def tick(
    keys: QueueKeys, schedule: str, tick_us: int, task: NewTask, *, now_us: int | None = None
) -> Call[bool]:
    """Enqueue the task of a schedule's tick; return whether the task was created.

    Nothing is enqueued when this tick or a later one was handled before, or the schedule is paused.
    """
    script = load("tick", flow=task.flow is not None)
    args = (
        _now(now_us), ENVELOPE_HEAD, schedule, tick_us,
        task.id, task.message, enqueue_options(task),
    )  # fmt: skip
    return Call(script, keys.names(script.keys), args, lambda reply: reply[0] == b"created")


def begin_ticks(
    keys: QueueKeys,
    schedules: Sequence[str],
    *,
    digests: Sequence[str] = (),
    now_us: int | None = None,
) -> Call[tuple[int, list[int]]]:
    """Return the store's time and, per schedule, the time after which its ticks are due.

    That is its last tick, or now for a new schedule. With `digests` of the expressions, ticks from
    before a change of the expression, or from before a schedule came back, are not due either.
    """
    script = load("begin_ticks")
    pairs = itertools.zip_longest(schedules, digests, fillvalue="")
    args = (_now(now_us), SCHEDULE_SILENCE_US, *itertools.chain.from_iterable(pairs))
    return Call(
        script,
        keys.names(script.keys),
        args,
        lambda reply: (int(reply[0]), [int(tick) for tick in reply[1:]]),
    )


def fetch(
    keys: QueueKeys,
    *,
    server: str,
    number: int,
    wanted: int,
    policy: FetchPolicy,
    free: int | None = None,
    again: bool = False,
    now_us: int | None = None,
) -> Call[FetchResult]:
    """Do the queue's upkeep and lease up to `wanted` tasks with the token `server/number`.

    At most `free` tasks with limits are leased, None: `wanted`: those that can start at once.
    `again`: this number was sent before and got no reply.
    """
    script = load("fetch")
    args = (
        _now(now_us), server, number, min(wanted, MAX_TASKS_PER_CALL), policy.lease_us,
        policy.max_crashes, policy.dead_limit, policy.dead_age_us, policy.max_bytes, int(again),
    )  # fmt: skip
    flow_args = (*args, args[3] if free is None else max(0, free))
    return Call(script, keys.names(script.keys), args, _fetched, flow_args=flow_args)


def made_again(fetch: Call[FetchResult]) -> Call[FetchResult]:
    """Return the fetch marked as a repetition of one that got no reply."""
    flow_args = fetch.flow_args or fetch.args
    return replace(fetch, args=(*fetch.args[:9], 1), flow_args=(*flow_args[:9], 1, *flow_args[10:]))


def complete(
    keys: QueueKeys, tasks: Sequence[Completion], *, now_us: int | None = None
) -> Call[list[Outcome]]:
    """Complete tasks. With results, the store refuses the whole call when it is out of memory."""
    kept = [task for task in _batch(tasks) if task.retention_us is not None]
    script = load("complete", allow_oom=not any(task.result for task in kept))
    args: list[Argument] = [_now(now_us)]
    if not kept:
        args.append(2)
        for task in tasks:
            args += (task.id, task.token)
    else:
        args.append(4)
        for task in tasks:
            retention = "" if task.retention_us is None else task.retention_us
            args += (task.id, task.token, retention, task.result)

    def outcomes(reply: Any) -> list[Outcome]:
        return ["ok"] * len(tasks) if reply == b"ok" else _outcomes(reply)

    return Call(script, keys.names(script.keys), tuple(args), outcomes)


def complete_without_room(
    keys: QueueKeys, tasks: Sequence[Completion], *, now_us: int | None = None
) -> Call[list[Outcome]]:
    """Complete tasks even when the store is out of memory; for short results only."""
    call = complete(keys, tasks, now_us=now_us)
    return replace(call, script=load("complete", allow_oom=True))


def retry(
    keys: QueueKeys, tasks: Sequence[Retried], *, now_us: int | None = None
) -> Call[list[Outcome]]:
    """Put failed tasks into retry until their next attempt."""
    return _settle("retry", keys, tasks, now_us)


def kill(
    keys: QueueKeys, tasks: Sequence[Killed], *, now_us: int | None = None
) -> Call[list[Outcome]]:
    """Make tasks dead."""
    rows = [(task.id, task.token, int(task.failed), task.failure) for task in tasks]
    return _settle("kill", keys, rows, now_us)


def hand_back(
    keys: QueueKeys, tasks: Sequence[HandedBack], *, now_us: int | None = None
) -> Call[list[Outcome]]:
    """Hand tasks back without counting an attempt.

    Tasks without a delay go to the head of pending, in this order.
    """
    rows = [
        (task.id, task.token, "" if task.delay_us is None else task.delay_us, task.failure)
        for task in tasks
    ]
    flow_args: list[Argument] = [_now(now_us)]
    for row, task in zip(rows, tasks, strict=True):
        flow_args += (*row, task.limit, task.closed_us, int(task.started))
    call = replace(_settle("hand_back", keys, rows, now_us), flow_args=tuple(flow_args))
    return call.in_flow() if any(task.limit for task in tasks) else call


def end_cancelled(
    keys: QueueKeys, tasks: Sequence[LeaseRef], *, now_us: int | None = None
) -> Call[list[Outcome]]:
    """End tasks whose handler was stopped because of a cancel request."""
    return _settle("end_cancelled", keys, tasks, now_us)


def renew(
    keys: QueueKeys, tasks: Sequence[LeaseRef], *, lease_us: int, now_us: int | None = None
) -> Call[list[Literal["ok", "cancelled", "done", "lost"]]]:
    """Extend leases to `lease_us` from now."""
    script = load("renew")
    args: list[Argument] = [_now(now_us), lease_us]
    for task in _batch(tasks):
        args += task
    return Call(script, keys.names(script.keys), tuple(args), _outcomes)


def start(
    keys: QueueKeys, tasks: Sequence[LeaseRef], *, together: bool = False
) -> Call[list[Outcome]]:
    """Mark tasks that crashed before as running: from now on a crash of the server counts for them.

    `together`: several suspects run at the same time, and up to three crashes do not count.
    """
    script = load("start")
    args = [value for task in _batch(tasks) for value in task]
    if together:
        args.append("-")
    return Call(script, keys.names(script.keys), tuple(args), _outcomes)


def progress(
    keys: QueueKeys, tasks: Sequence[tuple[str, str, float, float]]
) -> Call[list[Outcome]]:
    """Store the progress of tasks, given as (id, token, done, total)."""
    script = load("progress")
    args: list[Argument] = []
    for id, token, done, total in _batch(tasks):
        args += (id, token, f"{done:.12g}/{total:.12g}")
    return Call(script, keys.names(script.keys), tuple(args), _outcomes)


def abandon(keys: QueueKeys, server: str, *, cursor: str = "0") -> Call[tuple[str, int]]:
    """Expire the leases of a dead server at once, one part per call.

    Returns the next cursor ("0": done) and the number of leases.
    """
    script = load("abandon")
    return Call(
        script,
        keys.names(script.keys),
        (server, cursor),
        lambda reply: (_text(reply[0]), int(reply[1])),
    )


class Listened(NamedTuple):
    """The work in a queue, and whether a client asked for a server."""

    generation: str | None
    """Generation of the queue's data; None before the first fetch."""
    waits: bool
    """Whether tasks can be fetched."""
    due: bool
    """Whether upkeep is due."""
    woken: bool
    """Whether the wake list had an element: a client wanted to wake a server."""
    unsent: bool
    """Whether that client sent this server no message although it was registered as idle."""


def listen(
    keys: QueueKeys, *, server: str, lease_us: int, keep_us: int, now_us: int | None = None
) -> Call[Listened]:
    """Look at the queue; if it has no task to fetch, register the server to be woken by a message.

    The server must be subscribed to its channel.
    """
    script = load("listen")
    args = ("" if now_us is None else now_us, lease_us, server, keep_us)
    return Call(
        script,
        keys.names(script.keys),
        args,
        lambda reply: Listened(_text(reply[0]) or None, *map(bool, reply[1:])),
    )


def cancel(
    keys: QueueKeys, id: str, *, retention_us: int | None, now_us: int | None = None
) -> Call[tuple[Literal["cancelled", "active", "finished", "missing"], str]]:
    """Cancel a task; `active` comes with the token of its lease."""
    script = load("cancel")
    args = (_now(now_us), id, "" if retention_us is None else retention_us)
    return Call(script, keys.names(script.keys), args, _texts)


class RerunRequest(NamedTuple):
    """A task to run now. All but `id` is for dead tasks; `failure` is the record that they keep."""

    id: str
    fairness_key: str = ""
    lock: str = ""
    failure: bytes = b""
    priority: int = NORMAL_PRIORITY


RunOutcome = tuple[Literal["ok", "duplicate", "changed"], str]


def run(
    keys: QueueKeys,
    id: str,
    state: str,
    *,
    fairness_key: str = "",
    lock: str = "",
    failure: bytes = b"",
    priority: int = NORMAL_PRIORITY,
    now_us: int | None = None,
) -> Call[RunOutcome]:
    """Move a scheduled, retry or dead task to pending, if it is still in that state."""
    row = RerunRequest(id, fairness_key, lock, failure, priority)
    call = run_many(keys, [row], state, now_us=now_us)
    return Call(call.script, call.keys, call.args, lambda reply: call.decode(reply)[0])


def run_many(
    keys: QueueKeys, tasks: Sequence[RerunRequest], state: str, *, now_us: int | None = None
) -> Call[list[RunOutcome]]:
    """Move tasks of one state to pending, in this order, like `run`."""
    script = load("run")
    args: list[Argument] = [_now(now_us), state]
    for task in _batch(tasks):
        member = fairness_member(task.priority, task.fairness_key)
        args += (task.id, member, task.lock, task.failure)
    return Call(script, keys.names(script.keys), tuple(args), _pairs)


def delete(
    keys: QueueKeys, ids: Sequence[str], state: str, *, now_us: int | None = None
) -> Call[int]:
    """Delete the tasks that are still in `state` (not `active`); return how many were."""
    script = load("delete")
    return Call(script, keys.names(script.keys), (_now(now_us), state, *_batch(ids)), int)


class PurgeStep(NamedTuple):
    """The number of tasks that one call of a purge deleted, and the number left in the state.

    `last` is score and id of the last task to delete: pass it to the next call; None: done.
    """

    deleted: int
    left: int
    last: tuple[str, str] | None


def purge(
    keys: QueueKeys,
    state: str,
    *,
    last: tuple[str, str] | None = None,
    count: int = MAINTENANCE_BATCH,
    now_us: int | None = None,
) -> Call[PurgeStep]:
    """Delete the first tasks of a state, up to the last one that it held when the purge began.

    Active tasks are deleted only if their lease has expired.
    """
    script = load("purge")
    score, id = last or ("", "")
    args = (
        _now(now_us), state, min(count, MAX_TASKS_PER_CALL),
        score, id.encode(errors="surrogateescape"),
    )  # fmt: skip

    def decode(reply: Any) -> PurgeStep:
        fields = script.reply(reply)
        end = (_text(fields["score"]), fields["id"].decode(errors="surrogateescape"))
        return PurgeStep(fields["deleted"], fields["left"], end if fields["more"] else None)

    return Call(script, keys.names(script.keys), args, decode)


def delete_queue(keys: QueueKeys, *, force: bool = False) -> Call[int]:
    """Delete a queue without tasks, and without stored schedules unless `force`; return both."""
    script = load("delete_queue")
    return Call(script, keys.names(script.keys), (int(force),), int)


def repair(
    keys: QueueKeys,
    damage: str,
    rows: Sequence[tuple[str, str]],
    *,
    record: bytes,
    lease_us: int,
    now_us: int | None = None,
) -> Call[list[Literal["ok", "changed"]]]:
    """Repair damage that an audit found and that is still there; `rows` are (id, lock).

    `record` is the failure record for tasks that become dead. A task that has an owner but no state
    becomes active, with a lease of `lease_us`.
    """
    script = load("repair")
    args: list[Argument] = [_now(now_us), damage, record, lease_us]
    for row in _batch(rows):
        args += [text.encode(errors="surrogateescape") for text in row]
    return Call(script, keys.names(script.keys), tuple(args), _outcomes)


def pause(keys: QueueKeys, note: bytes, *, now_us: int | None = None) -> Call[bool]:
    """Pause a queue; the note says by whom and why. Return False when it was paused already."""
    return _pause(keys, _note(note), now_us)


def resume(keys: QueueKeys) -> Call[bool]:
    """Resume a queue; return False when it was not paused."""
    return _pause(keys, b"", None)


def publish_schedules(
    keys: QueueKeys, schedules: Sequence[tuple[str, bytes, bytes]], *, now_us: int | None = None
) -> Call[int]:
    """Publish schedules as (name, record, task); the scripts do not read record and task."""
    script = load("publish_schedules")
    args: list[Argument] = [_now(now_us), SCHEDULE_SILENCE_US]
    for schedule in _batch(schedules):
        args += schedule
    return Call(script, keys.names(script.keys), tuple(args), int)


def pause_schedule(
    keys: QueueKeys, schedule: str, note: bytes, *, now_us: int | None = None
) -> Call[bool | None]:
    """Pause a schedule: its ticks are skipped. False: it was paused already; None: not found."""
    return _pause_schedule(keys, schedule, _note(note), now_us)


def resume_schedule(
    keys: QueueKeys, schedule: str, *, now_us: int | None = None
) -> Call[bool | None]:
    """Resume a schedule. Return False when it was not paused, None when it is not found."""
    return _pause_schedule(keys, schedule, b"", now_us)


def forget_schedule(
    keys: QueueKeys, schedule: str, *, silence_us: int, now_us: int | None = None
) -> Call[bool | None]:
    """Delete a schedule that no server published for `silence_us`.

    Returns False when a server published it since, None when it is not found.
    """
    script = load("forget_schedule")
    return Call(script, keys.names(script.keys), (_now(now_us), schedule, silence_us), _changed)


def register(keys: GlobalKeys, queues: Iterable[str]) -> Call[int]:
    """Add queues to the set of queues in use; return how many are new."""
    return Call(load("register"), (keys.queues,), tuple(queues), int)


def unregister(keys: GlobalKeys, queues: Iterable[str]) -> Call[int]:
    """Remove queues from the set of queues in use; return how many were in it."""
    return Call(load("unregister"), (keys.queues,), tuple(queues), int)


def server_heartbeat(
    keys: GlobalKeys, server: str, *, ttl_us: int, now_us: int | None = None
) -> Call[int]:
    """Record a server as live for `ttl_us` (0: remove it); return the number of live servers."""
    return Call(load("server_heartbeat"), (keys.servers,), (_now(now_us), server, ttl_us), int)


def set_server_info(
    keys: GlobalKeys, server: str, fields: dict[str, bytes | str | int], *, ttl_ms: int
) -> Call[int]:
    """Store a server's description for `ttl_ms` (0: delete it); the fields are always the same."""
    pairs = [value for pair in fields.items() for value in pair]
    return Call(load("set_server_info"), (keys.server(server),), (ttl_ms, *pairs), int)


def send_order(keys: GlobalKeys, server: str, order: bytes, *, ttl_ms: int) -> Call[int]:
    """Put an order into the inbox of a server."""
    return Call(load("send_order"), (keys.inbox(server),), (ttl_ms, order), int)


def _pause(keys: QueueKeys, note: bytes, now_us: int | None) -> Call[bool]:
    script = load("pause")
    return Call(script, keys.names(script.keys), (_now(now_us), note), bool)


def _pause_schedule(
    keys: QueueKeys, schedule: str, note: bytes, now_us: int | None
) -> Call[bool | None]:
    script = load("pause_schedule")
    return Call(script, keys.names(script.keys), (_now(now_us), schedule, note), _changed)


def _note(note: bytes) -> bytes:
    if not note:
        msg = "note: a pause without one would be a resume"
        raise ValueError(msg)
    return note


def _changed(reply: int) -> bool | None:
    return None if reply < 0 else bool(reply)


def _settle(
    name: str, keys: QueueKeys, rows: Sequence[tuple[Argument, ...]], now_us: int | None
) -> Call[list[Outcome]]:
    script = load(name)
    args: list[Argument] = [_now(now_us)]
    for row in _batch(rows):
        args += row
    return Call(script, keys.names(script.keys), tuple(args), _outcomes)


def _batch(items: Sequence[T]) -> Sequence[T]:
    """Return the items, at most MAX_TASKS_PER_CALL: Lua's `unpack` may not take more."""
    if len(items) > MAX_TASKS_PER_CALL:
        msg = f"{len(items)} tasks in one call are over the limit of {MAX_TASKS_PER_CALL}"
        raise ValueError(msg)
    return items


def _now(now_us: int | None) -> Argument:
    return "" if now_us is None else now_us


def _enqueued(reply: Any, confirmed: bool | None) -> list[Enqueued]:
    outcomes = _ENQUEUE_OUTCOMES
    return [
        Enqueued(outcomes[outcome], id.decode("utf-8", "backslashreplace"), confirmed)
        for outcome, id in zip(reply[::2], reply[1::2], strict=True)
    ]


_ENQUEUE_OUTCOMES: Final[dict[bytes, EnqueueOutcome]] = {
    outcome.encode(): outcome for outcome in get_args(EnqueueOutcome)
}


def _fetched(values: Any) -> FetchResult:
    reply = load("fetch").reply(values)
    batch = (reply[name] for name in ("ids", "messages", "failures", "crashes", "since"))
    ids, messages, failures, crashes, since = only_tasks(*batch)
    return FetchResult(
        now_us=reply["now"],
        next_due_us=None if reply["next_due"] < 0 else reply["next_due"],
        more=bool(reply["more"]),
        recovered=reply["recovered"],
        died=reply["died"],
        ids=[id.decode() for id in ids],
        messages=messages,
        failures=failures,
        crashes=[crash_count(text) for text in crashes],
        own_lapsed=[_text(id) for id in reply["own_lapsed"]],
        paused=bool(reply["paused"]),
        generation=_text(reply["generation"]),
        left=reply["left"] == 1,
        left_for_free=reply["left"] == 2,
        spared=spared_crashes(ids, crashes) if any(crashes) else {},
        since=runnable_times(ids, since) if any(since) else {},
    )


def _text(value: bytes) -> str:
    """Decode a value of the store; invalid UTF-8 is escaped and never raises."""
    return value.decode(errors="backslashreplace")


def _outcomes(reply: Any) -> list[Any]:
    return [_text(outcome) for outcome in reply]


def _pairs(reply: Any) -> Any:
    texts = _outcomes(reply)
    return list(zip(texts[::2], texts[1::2], strict=True))


def _texts(reply: Any) -> Any:
    return tuple([_text(part) for part in reply])
