"""Checks the limits of the queues: limits without a rule, and tasks that have waited too long."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final, NamedTuple

from qsync import codec
from qsync.broker import limit_ops, type_ops, views
from qsync.broker.aio import AsyncBroker
from qsync.broker.limit_ops import LimitsPage, LimitState
from qsync.broker.truncated import decode_cut
from qsync.errors import QsyncError
from qsync.formatting import duration, plural
from qsync.keys import GlobalKeys, QueueKeys
from qsync.limit import limit_name
from qsync.state import TaskState

QUEUES_CHECKED: Final = 100
"""Maximum number of queues whose limits are checked."""

LIMITS: Final = 500
"""Approximate number of limits read per queue."""

LONG_WAIT_S: Final = 3600.0
"""Time that a task may wait for a limit before the doctor reports it, in seconds."""

LIMITS_NAMED: Final = 5
"""Maximum number of limits that a finding names."""


class QueueLimits(NamedTuple):
    """The limits of a queue, and how long its first limited task has waited, in seconds."""

    queue: str
    page: LimitsPage
    waited_s: float


async def read_limits(broker: AsyncBroker, keys: GlobalKeys) -> list[QueueLimits]:
    """Return the limits of each queue that uses limits; raise QsyncError if the store denies
    access."""
    names = (await broker.run(views.queues(keys))).names[:QUEUES_CHECKED]
    queues = [QueueKeys(keys.prefix, name) for name in sorted(names)]
    limits = []
    for queue in queues:
        page = await broker.run(limit_ops.list_limits(queue, count=LIMITS))
        if page.states:
            tasks = await broker.run(views.list_tasks(queue, TaskState.LIMITED, count=1))
            paused = {pause.type for pause in await broker.run(type_ops.paused_types(queue))}
            limits.append(QueueLimits(queue.queue, page, _waited_s(tasks, paused)))
    return limits


def _waited_s(tasks: views.TaskPage, paused: Collection[str]) -> float:
    """Return how long the first of these tasks has waited since its enqueue or due time, in
    seconds.

    A task of a `paused` type does not wait for a limit.
    """
    for row in tasks.rows:
        try:
            message = decode_cut(row.shown.message or b"", row.length)
        except codec.CodecError:
            continue
        if message.type in paused:
            continue
        return max(0, tasks.now_us - message.due_us) / 1_000_000
    return 0.0


def problems_of(limits: Sequence[QueueLimits]) -> list[str]:
    """Return the problems of the limits, one sentence per kind. Does no I/O."""
    without, stuck, long = [], [], []
    for queue, page, waited_s in limits:
        without += [
            f"{state.limit} of {queue}" for state in page.states if not _has_rule(page, state)
        ]
        stuck += [f"{state.limit} of {queue}" for state in page.states if _is_stuck(state)]
        if waited_s > LONG_WAIT_S:
            long.append(f"{queue} ({duration(waited_s)})")
    texts = []
    if without:
        texts.append(
            f"{_named(without)} {'has' if len(without) == 1 else 'have'} no rule, so anything may "
            "start: declare one with app.limit(...) or qsync limit set"
        )
    if stuck:
        texts.append(
            f"tasks wait for {_named(stuck)}, and nothing will start them: "
            "run `qsync doctor --audit`"
        )
    if long:
        texts.append(
            f"a task that waits for a limit has waited too long in {_named(long)}: "
            "raise the limit (qsync limit list), or enqueue less"
        )
    return texts


def _has_rule(page: LimitsPage, state: LimitState) -> bool:
    name = limit_name(state.limit)
    operators = page.operator_rules
    return name in page.rules or name in operators or state.limit in operators


def _is_stuck(state: LimitState) -> bool:
    idle = state.in_use + state.ready == 0
    return bool(state.waiting) and idle and state.opens_at_us is None


def _named(names: Sequence[str]) -> str:
    shown = ", ".join(names[:LIMITS_NAMED])
    return (
        f"{shown} and {plural(len(names) - LIMITS_NAMED, 'other')}"
        if len(names) > LIMITS_NAMED
        else shown
    )


async def examine_limits(broker: AsyncBroker, keys: GlobalKeys) -> list[str] | None:
    """Return the problems of the limits; None if no queue uses limits, or if they cannot be
    read."""
    try:
        limits = await read_limits(broker, keys)
    except QsyncError:
        return None
    return problems_of(limits) if limits else None
