"""The problems that `qsync stats` prints below the queues."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from shlex import quote
from typing import Final

from qsync.cli.output import print_line
from qsync.cli.queue_tables import pause_note
from qsync.formatting import coarse_duration, plural, relative, utc_time
from qsync.inspector import Died, Fleet, Inspector, MissedRun, PausedType, QueueInfo
from qsync.state import TaskState

MAX_LINES: Final = 10
"""Maximum number of lines to print."""


async def errors_of(inspector: Inspector, queues: Sequence[QueueInfo]) -> dict[str, int]:
    """Return how many different errors the unacknowledged dead tasks of each queue have.

    The result covers up to MAX_LINES queues. Queues with more than about 20,000 dead tasks are
    omitted, because one read cannot group that many.
    """
    numbers = {}
    for info in [info for info in queues if info.died is not None][:MAX_LINES]:
        part = await inspector.errors(info.name, TaskState.DEAD)
        first_at = info.died.first_at if info.died else None
        if part.cursor is None and first_at is not None:
            numbers[info.name] = sum(
                group.last_at is not None and group.last_at >= first_at for group in part.groups
            )
    return numbers


async def paused_types_of(
    inspector: Inspector, queues: Sequence[QueueInfo]
) -> list[tuple[str, PausedType]]:
    """Return the paused types of up to MAX_LINES queues that have limited tasks."""
    limited = [info.name for info in queues if info.states[TaskState.LIMITED]][:MAX_LINES]
    return [(name, each) for name in limited for each in await inspector.paused_types(name)]


def print_problems(
    queues: Sequence[QueueInfo],
    fleet: Fleet,
    missed: Sequence[MissedRun],
    errors: Mapping[str, int],
    paused: Sequence[tuple[str, PausedType]] = (),
) -> None:
    """Print a line for each problem, with the command that shows more."""
    lines = problems_of(queues, fleet, errors)
    lines += [
        f"{run.queue}: schedule {run.schedule} missed its run of {utc_time(run.tick)}; "
        f"qsync schedule history {quote(run.schedule)} --queue {run.queue}"
        for run in missed
    ]
    lines += [
        f"{queue}: type {each.type} is {pause_note(each.pause)}; "
        f"{plural(each.waiting, 'task')} set aside; "
        f"qsync type resume {quote(each.type)} --queue {queue}"
        for queue, each in paused
    ]
    if lines:
        print_line("")
    for line in lines[:MAX_LINES]:
        print_line(line)
    if len(lines) > MAX_LINES:
        print_line(f"And {plural(len(lines) - MAX_LINES, 'more problem')}.")


def problems_of(queues: Sequence[QueueInfo], fleet: Fleet, errors: Mapping[str, int]) -> list[str]:
    """Return the problems of these queues that need attention; does no I/O."""
    names = {info.name for info in queues}
    lines = [
        f"{info.name}: no running server takes its tasks; start one: qsync worker MODULE:APP "
        f"--queues {info.name}=1"
        for info in queues
        if info.states[TaskState.PENDING] and not info.paused and not fleet.of_queue(info.name)
    ]
    lines += [
        f"{queue}: no running server has a handler for {type}; its tasks: qsync task list "
        f"--queue {queue} --state scheduled --type {quote(type)}"
        for queue, types in fleet.unknown_types.items()
        for type in types
        if queue in names
    ]
    lines += [
        f"{run.queue}: task {run.id} has been running for "
        f"{coarse_duration(run.seconds)}; qsync task explain {quote(run.id)} --queue {run.queue}"
        for run in fleet.long_runs
        if run.queue in names
    ]
    lines += [
        f"{info.name}: {_died(info.died, errors.get(info.name))}; "
        f"to list their errors: qsync errors --queue {info.name}; "
        f"to acknowledge them: qsync errors acknowledge {info.name}"
        for info in queues
        if info.died is not None
    ]
    return lines


def _died(died: Died, errors: int | None) -> str:
    if died.number == 1:
        return f"1 task died {relative(died.last_at)}"
    first, last = relative(died.first_at), relative(died.last_at)
    of = f" of {plural(errors, 'error')}" if errors else ""
    return f"{died.number:,} tasks died{of}, the first {first}, the last {last}"


def print_service(queue: str, fleet: Fleet) -> None:
    """Print how many servers take tasks from the queue, and how busy they are."""
    servers = fleet.of_queue(queue)
    if not servers:
        print_line("no running server takes its tasks")
        return
    slots = sum(server.concurrency for server in servers)
    busy = sum(server.running for server in servers)
    line = f"served by {plural(len(servers), 'server')}: {busy:,} of {plural(slots, 'slot')} busy"
    full = "; to empty the queue sooner, start more servers or give them more slots"
    print_line(f"{line}{full if busy >= slots else ''}")
