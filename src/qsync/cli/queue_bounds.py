"""`qsync queue`: show a queue, and set or reset its bounds."""

from __future__ import annotations

from typing import Annotated

import msgspec
import typer

from qsync.bounds import Bounds, QueueBounds, WhenFull, bounds_of
from qsync.cli.command import exit_with, option
from qsync.cli.options import By, Json, Preview, QueueName, StoreOptions, duration_of
from qsync.cli.output import print_json, print_line
from qsync.cli.problems import print_service
from qsync.cli.prompts import current_user
from qsync.cli.queue import queue as queue
from qsync.cli.queue_tables import print_queues
from qsync.cli.store import StoreSession, check_queue, exit_unknown_queue, open_store
from qsync.errors import InvalidTask
from qsync.formatting import duration, relative
from qsync.inspector import Composition
from qsync.worker.child_limits import size_of

TOP = 5
"""Maximum number of task types to print."""

NONE = "none"
"""Value of an option that removes a bound or the latency target."""


def bound_of(text: str) -> int:
    """Parse a maximum number of tasks; return 0 for `none`."""
    if text == NONE:
        return 0
    if not text.replace("_", "").isdigit() or int(text) < 1:
        raise typer.BadParameter(f"{text!r} is not a number of tasks from 1, nor {NONE!r}")
    return int(text)


def bytes_of(text: str) -> int:
    """Parse a size such as `1GiB` or `500MB` into bytes; return 0 for `none`."""
    if text == NONE:
        return 0
    try:
        return size_of(text)
    except ValueError as error:
        raise typer.BadParameter(f"{error}, or {NONE}") from None


MaxTasks = Annotated[int | None, option(
    parser=bound_of, metavar="N", help="Maximum number of waiting tasks, e.g. 100000, or none.  "
    "[default: unchanged]",
)]  # fmt: skip

MaxBytes = Annotated[int | None, option(
    parser=bytes_of, metavar="SIZE", help="Maximum total size of the queue's messages, e.g. 500MiB "
    "or 1GiB, or none.  [default: unchanged]",
)]  # fmt: skip

Full = Annotated[WhenFull | None, option(
    "--when-full", metavar="WHAT", help="What an enqueue beyond a bound does: raise (QueueFull) or "
    "drop_oldest (drop the oldest waiting tasks).  [default: unchanged]",
)]  # fmt: skip


def target_of(text: str) -> float:
    """Parse a latency target into seconds; return 0 for `none`."""
    if text == NONE:
        return 0.0
    if not (seconds := duration_of(text)):
        raise typer.BadParameter(f"{text!r} is no time; write a duration such as 30s, or {NONE}")
    return seconds


Target = Annotated[float | None, option(
    "--latency-target", parser=target_of, metavar="DURATION", help="How long the oldest pending "
    "task may wait, e.g. 30s, or none. The dashboard reports a queue that exceeds this target.  "
    "[default: unchanged]",
)]  # fmt: skip


@queue.command()
def show(*, name: QueueName, store: StoreOptions, as_json: Json = False) -> None:
    """Show a queue: its tasks by state, its bounds, its servers and the types of its tasks."""
    with open_store(store) as session:
        info = session.run(check_queue(session.inspector, name))
        if as_json:
            print_json(info)
            return
        composition = session.run(session.inspector.composition(name))
        print_queues([info])
        _print_bounds(info.bounds)
        print_service(name, session.run(session.inspector.fleet()))
        _print_composition(composition)


@queue.command("set")
def set_bounds(
    *,
    name: QueueName,
    max_tasks: MaxTasks = None,
    max_bytes: MaxBytes = None,
    when_full: Full = None,
    latency_target: Target = None,
    by: By = None,
    dry_run: Preview = False,
    store: StoreOptions,
    as_json: Json = False,
) -> None:
    """Set a queue's bounds or latency target.

    For example: qsync queue set mail --max-tasks 100000 --latency-target 30s

    These bounds override the program's until `qsync queue reset`. A bound keeps its value if its
    option is not passed. A queue that exceeds a new bound loses no tasks.
    """
    author = current_user() if by is None else by
    with open_store(store) as session:
        with_bounds = max_tasks is not None or max_bytes is not None or when_full is not None
        if not with_bounds and latency_target is None:
            raise InvalidTask("use --max-tasks, --max-bytes, --when-full or --latency-target")
        if dry_run:
            session.run(check_queue(session.inspector, name))
        if latency_target is not None:
            is_last = not with_bounds
            _set_target(session, name, latency_target, author, is_last=is_last, dry_run=dry_run)
        if not with_bounds:
            return
        now = session.run(session.inspector.bounds(name)).in_force
        bounds = Bounds(
            max_tasks=now.max_tasks if max_tasks is None else max_tasks or None,
            max_bytes=now.max_bytes if max_bytes is None else max_bytes or None,
            when_full=when_full or now.when_full,
        )
        fields = msgspec.structs.asdict(bounds)
        if dry_run:
            _report(name, QueueBounds(program=bounds_of(**fields)), as_json, dry_run=True)
            return
        change = session.run(session.inspector.set_bounds(name, **fields, by=author))
        if not change.ok:
            session.run(exit_unknown_queue(session.inspector, name))
        _report(name, session.run(session.inspector.bounds(name)), as_json)


def _set_target(
    session: StoreSession, name: str, target: float, by: str, *, is_last: bool, dry_run: bool
) -> None:
    """Set or remove the latency target; print the new target if `is_last` or `dry_run` is true."""
    if not dry_run:
        change = session.run(session.inspector.set_latency_target(name, target or None, by=by))
        if not change.ok:
            session.run(exit_unknown_queue(session.inspector, name))
    if is_last or dry_run:
        text = f"latency target {duration(target)}" if target else "no latency target"
        print_line(f"{name}: {'would have ' if dry_run else ''}{text}")


@queue.command()
def reset(
    *, name: QueueName, dry_run: Preview = False, store: StoreOptions, as_json: Json = False
) -> None:
    """Remove the bounds that an operator set; the program's bounds apply again."""
    with open_store(store) as session:
        if dry_run:
            now = session.run(session.inspector.bounds(name))
            if now.operator is None:
                exit_with(f"no operator has set bounds for queue {name}")
            _report(name, QueueBounds(program=now.program), as_json, dry_run=True)
            return
        change = session.run(session.inspector.reset_bounds(name))
        if not change.ok:
            exit_with(f"no operator has set bounds for queue {name}")
        _report(name, session.run(session.inspector.bounds(name)), as_json)


def _report(name: str, bounds: QueueBounds, as_json: bool, *, dry_run: bool = False) -> None:
    if as_json and dry_run:
        print_json({"queue": name, "in_force": bounds.in_force, "dry_run": True})
    elif as_json:
        print_json({"queue": name, "bounds": bounds, "in_force": bounds.in_force})
    else:
        print_line(f"{name}: {'would have ' if dry_run else ''}{bounds.in_force}")


def _print_composition(composition: Composition) -> None:
    """Print the most common types of the pending tasks, from a sample."""
    commonest = list(composition.types.items())[:TOP]
    if commonest:
        parts = [f"{name} {number:,}" for name, number in commonest]
        hidden = len(composition.types) - TOP
        more = f", {hidden:,} more" if hidden > 0 else ""
        print_line(f"types of {composition.sampled:,} pending: {', '.join(parts)}{more}")


def _print_bounds(bounds: QueueBounds) -> None:
    print_line(f"bounds: {bounds.in_force}")
    if bounds.operator is not None:
        set_by = bounds.operator
        when = f" {relative(set_by.at)}" if set_by.at else ""
        print_line(f"  set by {set_by.by or 'an operator'}{when}")
        print_line(f"  set by the program: {bounds.program or 'no bounds'}")
    if bounds.fullest is not None:
        size = "" if bounds.bytes is None else f", {bounds.bytes:,} bytes of messages"
        print_line(f"  now: {bounds.waiting:,} waiting tasks{size}")
