"""`qsync limit`: list, show, set, open and reset limits."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any, Final

import msgspec
import typer

from qsync.cli import completion
from qsync.cli.command import USAGE, CommandGroup, argument, exit_with, option
from qsync.cli.listing import OutputOptions
from qsync.cli.options import (
    By,
    Cursor,
    Json,
    Preview,
    StoreOptions,
    duration_of,
    queue_option,
    sort_option,
)
from qsync.cli.output import Cell, Column, Row, print_facts, print_json, print_line, print_table
from qsync.cli.prompts import current_user
from qsync.cli.shell_words import shell_command
from qsync.cli.store import StoreSession, check_queue, open_store
from qsync.errors import InvalidTask
from qsync.formatting import local_time, plural, relative
from qsync.inspector import Change, Inspector, LimitInfo
from qsync.limit import check_limit, limit_rule

limit: Final = CommandGroup(
    name="limit",
    help="List limits, show the tasks that hold them, and set or reset rules.",
    no_args_is_help=True,
)

SORTS: Final[dict[str, Callable[[LimitInfo], Any]]] = {
    "name": lambda info: info.limit,
    "used": lambda info: (-info.in_use - info.ready, info.limit),
    "waiting": lambda info: (-info.waiting, info.limit),
}
"""Sort key for each column of the list."""

LimitQueue = Annotated[str, queue_option("Queue of the limit.")]

LimitName = Annotated[str, argument(
    metavar="LIMIT",
    help="Name of the limit, e.g. customer; for one value of it, add the value, e.g. customer:42.",
)]  # fmt: skip

Rate = Annotated[int | None, option(
    metavar="N", help="Number of tasks that may start in each period (--per).",
)]  # fmt: skip
Per = Annotated[float | None, option(
    parser=duration_of, metavar="TIME", help="Period of --rate, e.g. 1s, 1m, 1h.",
)]  # fmt: skip
Burst = Annotated[int | None, option(
    metavar="N", help="Number of tasks that may start together after an idle period.  [default: "
    "a tenth of --rate]",
)]  # fmt: skip
Concurrency = Annotated[int | None, option(
    metavar="N", help="Maximum number of tasks that run at the same time.",
)]  # fmt: skip


@limit.command("list")
def list_limits(
    *,
    queue: Annotated[
        str,
        typer.Argument(
            metavar="[QUEUE]", help="Queue whose limits to list.", autocompletion=completion.queues
        ),
    ] = "default",
    cursor: Cursor = None,
    sort: Annotated[str, sort_option(
        SORTS,
        "Column to sort this page by: name, or used or waiting (most first).  [default: name]",
    )] = "name",
    store: StoreOptions,
    output: OutputOptions,
) -> None:  # fmt: skip
    """List the limits of a queue, each with its slots in use, its waiting tasks and its rule.

    For example: qsync limit list mail

    IN USE counts the tasks that are running, and those that the limit allows to start.
    """
    with open_store(store) as session:

        def show() -> None:
            page = session.run(session.inspector.limits(queue, cursor=cursor))
            limits = sorted(page.limits, key=SORTS[sort])

            def print_table(whole: bool) -> None:
                if limits:
                    _print_table(limits, whole=whole)
                else:
                    session.run(check_queue(session.inspector, queue))
                    print_line(f"Queue {queue} has no limits.")
                if page.cursor:
                    more = shell_command("limit list", queue, cursor=page.cursor)
                    print_line(f"More: {more}")

            document = msgspec.structs.replace(page, limits=limits)
            output.print_rows(limits, print_table, document)

        output.repeat(show)


@limit.command()
def show(
    *,
    name: LimitName,
    queue: LimitQueue = "default",
    store: StoreOptions,
    as_json: Json = False,
) -> None:
    """Show a limit: its rules, the tasks that hold its slots, and how many tasks wait.

    For example: qsync limit show customer:42 --queue mail
    """
    _check(name)
    with open_store(store) as session:
        session.run(check_queue(session.inspector, queue))
        info = session.run(session.inspector.limit(name, queue=queue))
        if as_json:
            print_json(info)
        else:
            _print_limit(info)


@limit.command("set")
def set_rule(
    *,
    name: LimitName,
    queue: LimitQueue = "default",
    rate: Rate = None,
    per: Per = None,
    burst: Burst = None,
    concurrency: Concurrency = None,
    by: By = None,
    dry_run: Preview = False,
    store: StoreOptions,
    as_json: Json = False,
) -> None:
    """Set the rule of a limit, or of one value of the limit, to override the program's rule.

    For example: qsync limit set customer:42 --concurrency 10

    The rule immediately replaces the program's whole rule on all servers, until you reset it.
    Running tasks continue.
    """
    _check(name)
    try:
        rule = limit_rule(f"limit {name}", rate=rate, per=per, burst=burst, concurrency=concurrency)
    except InvalidTask as error:
        exit_with(_with_options(str(error)), USAGE)
    author = current_user() if by is None else by
    with open_store(store) as session:
        if dry_run:
            session.run(check_queue(session.inspector, queue))
            info = session.run(session.inspector.limit(name, queue=queue))
            _print_preview(info, str(rule), as_json)
            return
        change = session.run(session.inspector.set_limit(name, rule, queue=queue, by=author))
        if as_json:
            _print_outcome(change, name, queue, str(rule))
        if not change.ok:
            session.run(check_queue(session.inspector, queue))
            exit_with(f"queue {queue} is gone")
        if not as_json:
            print_line(f"{name}: {rule}")


def _print_outcome(change: Change, name: str, queue: str, rule: str | None = None) -> None:
    """Print the outcome of a change as JSON, with the rule that now applies."""
    document = {"limit": name, "queue": queue, "outcome": change.outcome}
    if change.ok and rule is not None:
        document["rule"] = rule
    print_json(document)


def _print_preview(info: LimitInfo, rule: str, as_json: bool) -> None:
    """Print the rule that a limit would have after the change, and its current rule."""
    now = str(info.rule or "unlimited")
    if as_json:
        print_json({"limit": info.limit, "rule": rule, "now": now, "dry_run": True})
    else:
        print_line(f"{info.limit}: would be {rule}; now: {now}")


def _with_options(message: str) -> str:
    """Return an error message with command-line options in place of arguments such as `per=`."""
    text = re.sub(r"\b(rate|per|burst|concurrency)=(\d+)", r"--\1 \2", message)
    return re.sub(r"\b(rate|per|burst|concurrency)=", r"--\1", text)


@limit.command("open")
def open_now(
    *,
    name: LimitName,
    queue: LimitQueue = "default",
    dry_run: Preview = False,
    store: StoreOptions,
    as_json: Json = False,
) -> None:
    """Open a limit that a handler has closed by raising RateLimited.

    For example: qsync limit open stripe --queue mail

    The limit's rule still applies. If a handler raises RateLimited again, the limit closes again.
    """
    _check(name)
    with open_store(store) as session:
        if dry_run:
            change = session.run(_closed(session.inspector, name, queue))
        else:
            change = session.run(session.inspector.open_limit(name, queue=queue))
        if as_json:
            _print_outcome(change, name, queue)
        if change.outcome == "not_found":
            session.run(check_queue(session.inspector, queue))
            exit_with(f"queue {queue} is gone")
        if not change.ok:
            exit_with(f"{name} of queue {queue} is not closed")
        if not as_json:
            print_line(f"{name}: would be open" if dry_run else f"{name}: open")


async def _closed(inspector: Inspector, name: str, queue: str) -> Change:
    """Return the outcome that opening a limit would have, without opening it."""
    if await inspector.queue(queue) is None:
        return Change(outcome="not_found")
    info = await inspector.limit(name, queue=queue)
    return Change(outcome="too_late" if info.closed_until is None else "done")


@limit.command()
def reset(
    *,
    name: LimitName,
    queue: LimitQueue = "default",
    program: Annotated[bool, typer.Option(
        "--program", help="Also remove the program's rule, e.g. of a limit that the program no "
        "longer declares.",
    )] = False,
    dry_run: Preview = False,
    store: StoreOptions,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Remove the rule that an operator has set; the program's rule applies again.

    For example: qsync limit reset customer:42

    If a program declares the limit, its servers publish a removed rule again when they start.
    """
    _check(name)
    with open_store(store) as session:
        session.run(check_queue(session.inspector, queue))
        if dry_run:
            _preview_reset(session, name, queue, program, as_json)
            return
        work = session.inspector.reset_limit(name, queue=queue, program=program)
        change = session.run(work)
        info = session.run(session.inspector.limit(name, queue=queue))
        if as_json:
            _print_outcome(change, name, queue, str(info.rule or "unlimited"))
        if not change.ok:
            exit_with(_no_rule(name, queue, program))
        if not as_json:
            print_line(f"{name}: {info.rule or 'unlimited'}")


def _no_rule(name: str, queue: str, program: bool) -> str:
    if program:
        return f"there is no rule for {name} in queue {queue}"
    return f"no operator has set a rule for {name} in queue {queue}"


def _preview_reset(
    session: StoreSession, name: str, queue: str, program: bool, as_json: bool
) -> None:
    info = session.run(session.inspector.limit(name, queue=queue))
    is_set = info.operator is not None and info.operator.limit == name
    if not is_set and not (program and info.program):
        exit_with(_no_rule(name, queue, program))
    rule = None if program else info.program
    if ":" in name:  # an operator's rule for the name without a value still applies
        whole = session.run(session.inspector.limit(name.partition(":")[0], queue=queue))
        rule = whole.operator.rule if whole.operator is not None else info.program
    _print_preview(info, str(rule or "unlimited"), as_json)


def _check(name: str) -> None:
    try:
        check_limit(name, "LIMIT")
    except InvalidTask as error:
        exit_with(str(error), USAGE)


def _print_table(limits: list[LimitInfo], *, whole: bool) -> None:
    columns = [
        Column("LIMIT", shrink=True), Column("IN USE", right=True), Column("WAITING", right=True),
        Column("OPENS"), Column("RULE", shrink=True),
    ]  # fmt: skip
    rows: list[Row] = [
        [
            info.limit,
            _taken(info),
            Cell(f"{info.waiting:,}", "yellow" if info.waiting else ""),
            _opens(info),
            _rule(info),
        ]
        for info in limits
    ]
    print_table(columns, rows, whole=whole)


def _taken(info: LimitInfo) -> str:
    maximum = info.rule.concurrency if info.rule else None
    return f"{info.taken:,}" if maximum is None else f"{info.taken:,} of {maximum:,}"


def _opens(info: LimitInfo) -> str:
    if info.closed_until is not None:
        return f"closed, {relative(info.closed_until)}"
    return "" if info.opens_at is None else relative(info.opens_at)


def _rule(info: LimitInfo) -> str:
    if info.rule is None:
        return "none: unlimited"
    if info.source == "operator" and info.operator is not None:
        return f"{info.rule} (set by {info.operator.by or 'an operator'})"
    return str(info.rule)


def _print_limit(info: LimitInfo) -> None:
    print_line(f"Limit {info.limit} of queue {info.queue}", "bold")
    operator = info.operator
    facts = [
        ("rule", str(info.rule or "none: unlimited")),
        ("program's rule", str(info.program or "none")),
    ]
    if operator is not None:
        when = f", {local_time(operator.at)}" if operator.at else ""
        who = operator.by or "an operator"
        facts.append(("set by hand", f"{operator.rule} for {operator.limit}, by {who}{when}"))
    facts += [
        ("in use", f"{_taken(info)}: {info.in_use:,} running, {info.ready:,} ready"),
        ("waiting", plural(info.waiting, "task")),
    ]
    if info.closed_until is not None:
        facts.append(("closed until", local_time(info.closed_until)))
    if info.opens_at is not None:
        facts.append(("opens", local_time(info.opens_at)))
    if info.holders:
        facts.append(("held by", ", ".join(info.holders)))
    print_facts(facts, max(len(name) for name, _ in facts))
