"""The operations on tasks that clients and servers use, one pure function per script.

Each function returns a Call, which a Broker runs. `now_us` is for tests; if it is None, the script
uses the store's clock. A call takes at most MAX_TASKS_PER_CALL tasks; `batches` also keeps it
within BATCH_BYTES.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from operator import attrgetter
from typing import Any, Final, Literal, NamedTuple, TypeVar, get_args

from msgspec.structs import replace

from qsync.broker.call import (
    Argument,
    Call,
    Durability,
    Wait,
    bounded,
    now_argument,
    queue_call,
    text_of,
    text_tuple,
    texts_of,
)
from qsync.broker.enqueue_options import enqueue_options, need_flow
from qsync.broker.leased_batch import crash_count, only_tasks, runnable_times, spared_crashes
from qsync.broker.op_values import (
    BATCH_BYTES,
    BATCH_SIZE,
    MAX_TASKS_PER_CALL,
    NO_CALL_ID,
    SHORT_FAILURE,
    Completion,
    Enqueued,
    EnqueueOutcome,
    FetchPolicy,
    FetchResult,
    HandedBack,
    Killed,
    Leased,
    LeaseRef,
    Outcome,
    Retried,
)
from qsync.broker.script import load
from qsync.keys import QueueKeys
from qsync.message import ENVELOPE_HEAD
from qsync.new_task import NewTask

T = TypeVar("T")

_lease_of: Final = attrgetter("id", "token")


def batches(
    items: Sequence[Any], size: Callable[[Any], int], max_bytes: int = BATCH_BYTES
) -> Iterator[Sequence[Any]]:
    """Split items into batches of at most BATCH_SIZE items and `max_bytes` bytes; an item that is
    larger gets a batch of its own."""
    if 0 < len(items) <= BATCH_SIZE and sum(map(size, items)) <= max_bytes:
        yield items
        return
    start = total = 0
    for index, item in enumerate(items):
        amount = size(item)
        if index > start and (index - start >= BATCH_SIZE or total + amount > max_bytes):
            yield items[start:index]
            start, total = index, 0
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

    A `sender` numbers its calls and has one in flight at a time. A repeated call gets the same
    reply as the first, even if the tasks have left the queue by then. A call does nothing and
    returns no outcomes if its sender has made a call with a higher number.
    """
    if sender and len(tasks) == 1 and not enqueue_options(tasks[0]):
        return _enqueue_one(keys, tasks[0], sender, number, wait, now_argument(now_us))
    options = [enqueue_options(task) for task in bounded(tasks)]
    script = load("enqueue", flow=need_flow(tasks))
    args: list[Argument] = [now_argument(now_us), ENVELOPE_HEAD, sender, number]
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


def _enqueue_one(
    keys: QueueKeys,
    task: NewTask,
    sender: str,
    number: int,
    wait: Wait | None,
    now: Argument,
) -> Call[list[Enqueued]]:
    """Store a new task without options. The effect is the same as that of `enqueue`, but the store
    does less work."""
    script, id, message = load("enqueue_one"), task.id, task.message

    def decode(reply: Any) -> list[Enqueued]:
        answer, confirmed = (reply, None) if wait is None else reply
        if answer == b"created":
            return [Enqueued("created", id, confirmed)]
        return _enqueued(answer, confirmed)

    args = (now, ENVELOPE_HEAD, sender, number, id, message)
    flow_args = (now, ENVELOPE_HEAD, sender, number, 2, id, message)
    return Call(script, keys.names(script.keys), args, decode, wait, flow_args)


def wait(keys: QueueKeys, durability: Durability, *, timeout_ms: int) -> Wait:
    """Return the durability wait that follows a call on this queue, limited to `timeout_ms`."""
    script = load("wait_marker")
    return Wait(durability, timeout_ms, Call(script, keys.names(script.keys), (), int))


def fetch(
    keys: QueueKeys,
    *,
    server: str,
    number: int,
    wanted: int,
    policy: FetchPolicy,
    free: int | None = None,
    rules: str = "",
    again: bool = False,
    now_us: int | None = None,
) -> Call[FetchResult]:
    """Do the queue's upkeep and lease up to `wanted` tasks with the token `server/number`.

    At most `free` tasks with limits are leased, since they must start immediately; None means
    `wanted`. `rules` is the generation for which the server has published its program's rules. If
    the data have another generation, no tasks with limits are leased; an empty `rules` matches any
    generation. `again` means that a fetch with this number was sent before, but received no reply.
    """
    script = load("fetch")
    args = (
        now_argument(now_us), server, number, min(wanted, MAX_TASKS_PER_CALL), policy.lease_us,
        policy.max_crashes, policy.dead_limit, policy.dead_age_us, policy.max_bytes, int(again),
    )  # fmt: skip
    flow_args = (*args, args[3] if free is None else max(0, free), rules)
    return Call(script, keys.names(script.keys), args, _fetched, flow_args=flow_args)


def made_again(fetch: Call[FetchResult]) -> Call[FetchResult]:
    """Return the same fetch, marked as a repetition of a fetch that got no reply."""
    flow_args = fetch.flow_args or fetch.args
    return replace(fetch, args=(*fetch.args[:9], 1), flow_args=(*flow_args[:9], 1, *flow_args[10:]))


def complete(
    keys: QueueKeys, tasks: Sequence[Completion], *, now_us: int | None = None
) -> Call[list[Outcome]]:
    """Complete tasks. If a task has a result, a store that is out of memory refuses the whole
    call."""
    retained = [task for task in bounded(tasks) if task.retention_us is not None]
    if not retained:
        return complete_without_results(keys, tasks, now_us=now_us)
    args: list[Argument] = [now_argument(now_us), 4]
    for task in tasks:
        retention = "" if task.retention_us is None else task.retention_us
        args += (task.id, task.token, retention, task.result)
    return _completing(keys, args, len(tasks), allow_oom=not any(task.result for task in retained))


def complete_without_results(
    keys: QueueKeys, tasks: Sequence[Leased], *, now_us: int | None = None
) -> Call[list[Outcome]]:
    """Complete tasks, and delete them immediately."""
    args: list[Argument] = [now_argument(now_us), 2]
    args.extend(chain.from_iterable(map(_lease_of, bounded(tasks))))
    return _completing(keys, args, len(tasks), allow_oom=True)


def complete_without_room(
    keys: QueueKeys, tasks: Sequence[Completion], *, now_us: int | None = None
) -> Call[list[Outcome]]:
    """Complete tasks even when the store is out of memory. The results must be short."""
    return without_room(complete(keys, tasks, now_us=now_us))


def without_room(call: Call[T]) -> Call[T]:
    """Return the call in a form that the store runs even when it is out of memory."""
    script = call.script
    return replace(call, script=load(script.name, allow_oom=True, flow=not script.is_plain))


def retry(
    keys: QueueKeys, tasks: Sequence[Retried], *, now_us: int | None = None
) -> Call[list[Outcome]]:
    """Put failed tasks into `retry` until their next attempt.

    If a failure record exceeds SHORT_FAILURE bytes, a store that is out of memory refuses the whole
    call. The store also refuses calls of `kill` and `hand_back` in this case.
    """
    return _settle("retry", keys, tasks, now_us, records=[task.failure for task in tasks])


def kill(
    keys: QueueKeys, tasks: Sequence[Killed], *, now_us: int | None = None
) -> Call[list[Outcome]]:
    """Make tasks dead."""
    rows = [(task.id, task.token, int(task.failed), task.failure) for task in tasks]
    return _settle("kill", keys, rows, now_us, records=[task.failure for task in tasks])


def hand_back(
    keys: QueueKeys, tasks: Sequence[HandedBack], *, now_us: int | None = None
) -> Call[list[Outcome]]:
    """Hand tasks back without counting an attempt.

    Tasks without a delay go to the head of `pending`, in this order.
    """
    rows = [
        (task.id, task.token, "" if task.delay_us is None else task.delay_us, task.failure)
        for task in tasks
    ]
    flow_args: list[Argument] = [now_argument(now_us)]
    for row, task in zip(rows, tasks, strict=True):
        leased_us = 0 if task.started else task.leased_us
        flow_args += (*row, task.limit, task.closed_us, leased_us)
    call = _settle("hand_back", keys, rows, now_us, records=[task.failure for task in tasks])
    call = replace(call, flow_args=tuple(flow_args))
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
    args: list[Argument] = [now_argument(now_us), lease_us]
    for task in bounded(tasks):
        args += task
    return queue_call("renew", keys, args, texts_of)


def mark_started(
    keys: QueueKeys, tasks: Sequence[LeaseRef], *, together: bool = False
) -> Call[list[Outcome]]:
    """Mark tasks with earlier crashes as running. From now on, a server crash counts against them.

    With `together`, several suspects run at the same time, and up to three crashes do not count.
    """
    args = [value for task in bounded(tasks) for value in task]
    if together:
        args.append("-")
    return queue_call("mark_started", keys, args, texts_of)


def progress(
    keys: QueueKeys, tasks: Sequence[tuple[str, str, float, float]]
) -> Call[list[Outcome]]:
    """Store the progress of tasks, given as (id, token, done, total)."""
    args: list[Argument] = []
    for id, token, done, total in bounded(tasks):
        args += (id, token, f"{done:.12g}/{total:.12g}")
    return queue_call("progress", keys, args, texts_of)


def abandon(keys: QueueKeys, server: str, *, cursor: str = "0") -> Call[tuple[str, int]]:
    """Expire some of the leases of a dead server.

    Returns the cursor for the next call ("0" when all leases are done) and the number of leases
    that this call expired.
    """
    return queue_call(
        "abandon", keys, (server, cursor), lambda reply: (text_of(reply[0]), int(reply[1]))
    )


class IdleCheck(NamedTuple):
    """What work a queue has for a server, and whether a client wanted to wake a server."""

    generation: str | None
    """Generation of the queue's data; None before the first fetch."""
    waits: bool
    """Whether tasks can be fetched."""
    due: bool
    """Whether upkeep is due."""
    woken: bool
    """Whether the wake list had an element, because a client wanted to wake a server."""
    unsent: bool
    """Whether that client sent this server no message although the server was registered as
    idle."""


def mark_idle(
    keys: QueueKeys, *, server: str, lease_us: int, keep_us: int, now_us: int | None = None
) -> Call[IdleCheck]:
    """Check the queue; if it has no task to fetch, register the server as idle, so that a message
    wakes it.

    The server must be subscribed to its channel for the queue.
    """
    args = (now_argument(now_us), lease_us, server, keep_us)
    return queue_call(
        "mark_idle",
        keys,
        args,
        lambda reply: IdleCheck(text_of(reply[0]) or None, *map(bool, reply[1:])),
    )


def cancel(
    keys: QueueKeys,
    id: str,
    *,
    retention_us: int | None,
    call_id: tuple[str, int] = NO_CALL_ID,
    now_us: int | None = None,
) -> Call[tuple[Literal["cancelled", "active", "finished", "missing"], str]]:
    """Cancel a task; for the outcome `active`, also return the token of the task's lease.

    With a `call_id`, a repeated call returns the same reply.
    """
    retention = "" if retention_us is None else retention_us
    args = (now_argument(now_us), "", id, retention, *call_id)
    return queue_call("cancel", keys, args, text_tuple)


def _completing(
    keys: QueueKeys, args: Sequence[Argument], count: int, *, allow_oom: bool
) -> Call[list[Outcome]]:
    def outcomes(reply: Any) -> list[Outcome]:
        return ["ok"] * count if reply == b"ok" else texts_of(reply)

    script = load("complete", allow_oom=allow_oom)
    return Call(script, keys.names(script.keys), tuple(args), outcomes)


def _settle(
    name: str,
    keys: QueueKeys,
    rows: Sequence[tuple[Argument, ...]],
    now_us: int | None,
    records: Sequence[bytes] = (),
) -> Call[list[Outcome]]:
    args: list[Argument] = [now_argument(now_us)]
    for row in bounded(rows):
        args += row
    is_long = any(len(record) > SHORT_FAILURE for record in records)
    script = load(name, allow_oom=False if is_long else None)
    return Call(script, keys.names(script.keys), tuple(args), texts_of)


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
        crashes=[crash_count(text) for text in crashes] if any(crashes) else [0] * len(ids),
        own_lapsed=[text_of(id) for id in reply["own_lapsed"]],
        paused=bool(reply["paused"]),
        generation=text_of(reply["generation"]),
        left=reply["left"] in (1, 3),
        left_for_free=reply["left"] == 2,
        passed_over=reply["left"] in (2, 3),
        spared=spared_crashes(ids, crashes) if any(crashes) else {},
        since=runnable_times(ids, since) if any(since) else {},
    )
