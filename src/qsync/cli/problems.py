"""The problems that `qsync stats` reports with the queues."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Final

import msgspec

from qsync.cli.output import print_line
from qsync.cli.queue_tables import pause_note
from qsync.cli.shell_words import shell_command
from qsync.formatting import coarse_duration, plural, relative, utc_time
from qsync.inspector import Died, Fleet, Inspector, MissedRun, PausedType, QueueInfo
from qsync.state import TaskState

SHOWN_PER_KIND: Final = 5
"""Maximum number of problems of one kind to print, so that no kind hides another."""

MAX_QUEUES: Final = 10
"""Maximum number of queues whose errors and paused types are read."""


class QueueProblem(msgspec.Struct, frozen=True):
    """A problem of a queue that needs attention, and the command that shows more or repairs it."""

    queue: str
    kind: str
    """One of `no server`, `no handler`, `long run`, `dead tasks`, `missed run`, `paused type`."""
    text: str
    hint: str


async def _errors_of(inspector: Inspector, queues: Sequence[QueueInfo]) -> dict[str, int]:
    """Return how many different errors the unacknowledged dead tasks of each queue have.

    The result covers up to MAX_QUEUES queues. Queues with more than about 20,000 dead tasks are
    omitted, because one read cannot group that many.
    """
    numbers = {}
    for info in [info for info in queues if info.died is not None][:MAX_QUEUES]:
        part = await inspector.errors(info.name, TaskState.DEAD)
        first_at = info.died.first_at if info.died else None
        if part.cursor is None and first_at is not None:
            numbers[info.name] = sum(
                group.last_at is not None and group.last_at >= first_at for group in part.groups
            )
    return numbers


async def _paused_types_of(
    inspector: Inspector, queues: Sequence[QueueInfo]
) -> list[tuple[str, PausedType]]:
    """Return the paused types of up to MAX_QUEUES queues that have limited tasks."""
    limited = [info.name for info in queues if info.states[TaskState.LIMITED]][:MAX_QUEUES]
    return [(name, each) for name in limited for each in await inspector.paused_types(name)]


def print_problems(problems: Sequence[QueueProblem]) -> None:
    """Print each problem with the command that shows more, a few problems of each kind."""
    kinds: dict[str, list[QueueProblem]] = {}
    for problem in problems:
        kinds.setdefault(problem.kind, []).append(problem)
    if kinds:
        print_line("")
    for each in kinds.values():
        for problem in each[:SHOWN_PER_KIND]:
            print_line(f"{problem.queue}: {problem.text}; {problem.hint}")
        if more := len(each[SHOWN_PER_KIND:]):
            print_line(
                f"And {plural(more, 'more problem')} like {'these' if more > 1 else 'this'}."
            )


async def read_problems(inspector: Inspector, queues: Sequence[QueueInfo]) -> list[QueueProblem]:
    """Return the problems of these queues that need attention, the most urgent kind first."""
    fleet = await inspector.fleet()
    missed = await inspector.missed_runs([info.name for info in queues])
    return [
        *_without_server(queues, fleet),
        *_of_servers({info.name for info in queues}, fleet),
        *_losses(queues, await _errors_of(inspector, queues)),
        *[_missed(run) for run in missed],
        *[_paused(queue, each) for queue, each in await _paused_types_of(inspector, queues)],
    ]


def _without_server(queues: Sequence[QueueInfo], fleet: Fleet) -> list[QueueProblem]:
    return [
        QueueProblem(
            info.name,
            "no server",
            "no running server takes its tasks",
            f"start one: {shell_command('worker MODULE:APP', queues=f'{info.name}=1')}",
        )
        for info in queues
        if info.states[TaskState.PENDING] and not info.paused and not fleet.of_queue(info.name)
    ]


def _of_servers(names: Set[str], fleet: Fleet) -> list[QueueProblem]:
    """Return the types without a handler and the long runs of these queues."""
    unknown = [
        QueueProblem(
            queue,
            "no handler",
            f"no running server has a handler for {type}",
            f"its tasks: {shell_command('task list', queue=queue, state='scheduled', type=type)}",
        )
        for queue, types in fleet.unknown_types.items()
        for type in types
        if queue in names
    ]
    long = [
        QueueProblem(
            run.queue,
            "long run",
            f"task {run.id} has been running for {coarse_duration(run.seconds)}",
            shell_command("task explain", run.id, queue=run.queue),
        )
        for run in fleet.long_runs
        if run.queue in names
    ]
    return [*unknown, *long]


def _losses(queues: Sequence[QueueInfo], errors: Mapping[str, int]) -> list[QueueProblem]:
    return [
        QueueProblem(
            info.name,
            "dead tasks",
            _died(info.died, errors.get(info.name)),
            f"to list their errors: {shell_command('errors', queue=info.name)}; "
            f"to acknowledge them: {shell_command('errors acknowledge', info.name)}",
        )
        for info in queues
        if info.died is not None
    ]


def _missed(run: MissedRun) -> QueueProblem:
    return QueueProblem(
        run.queue,
        "missed run",
        f"schedule {run.schedule} missed its run of {utc_time(run.tick)}",
        shell_command("schedule history", run.schedule, queue=run.queue),
    )


def _paused(queue: str, each: PausedType) -> QueueProblem:
    return QueueProblem(
        queue,
        "paused type",
        f"type {each.type} is {pause_note(each.pause)}; {plural(each.waiting, 'task')} set aside",
        shell_command("type resume", each.type, queue=queue),
    )


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
