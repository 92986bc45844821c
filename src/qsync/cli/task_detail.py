"""Prints everything that the store knows about a task."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final

from qsync.cli.command import exit_with
from qsync.cli.options import StoreOptions
from qsync.cli.output import (
    COLOURS,
    Column,
    escaped_lines,
    print_json,
    print_line,
    print_raw,
    print_table,
)
from qsync.cli.store import open_store, queue_of
from qsync.formatting import duration, local_time, percent, relative, size
from qsync.inspector import Explanation, HandlerStack, Inspector, Shown, TaskDetail
from qsync.inspector.msgpack_json import TEXT_LIMIT
from qsync.message import ERROR_LIMIT
from qsync.state import TaskState

LINES: Final = 100
"""Maximum number of lines to print of a payload or a result."""

CHARACTERS: Final = 8_000
"""Maximum number of characters to print of a payload, a result or a header."""

HEADERS: Final = 500
"""Maximum number of headers to print."""


def print_task(detail: TaskDetail, why: Explanation | None) -> None:
    """Print a task, and why it is not running yet."""
    facts = [(name, text) for name, text in _facts(detail, why) if text]
    print_line(f"Task {detail.row.id}", "bold")
    width = max(len(name) for name, _ in facts)
    for name, text in facts:
        style = COLOURS.get(detail.row.state, "") if name == "state" else ""
        print_line(f"{name.ljust(width)}  {text}", style)
    _print_headers(detail)
    _print_shown("payload", detail.shown, len(detail.payload), raw=True)
    if detail.result is not None:
        _print_shown("result", detail.result, None)
    if detail.result_error:
        _print_block("result", "", detail.result_error)
    _print_history(detail)
    _print_timeline(detail)
    print_error(detail)


def print_error(detail: TaskDetail) -> None:
    """Print a task's last error with its traceback, if the task has failed."""
    if detail.error:
        is_cut = len(detail.error.encode(errors="replace")) >= ERROR_LIMIT - 8
        note = f"only the first and last parts are kept, {ERROR_LIMIT // 1024} KiB in all"
        _print_block("error", note if is_cut else "", detail.error)


def _facts(detail: TaskDetail, why: Explanation | None) -> list[tuple[str, str]]:
    row, ended = detail.row, detail.row.ended_attempts
    cancelling = row.cancelled and row.state is not TaskState.CANCELLED
    durations: Sequence[tuple[str, float | str | None]] = (
        ("timeout", detail.timeout), ("retry delay", detail.retry_delay),
        ("retention", detail.retention),
    )  # fmt: skip
    return [
        ("state", f"{row.state}, cancel requested" if cancelling else str(row.state)),
        ("type", row.type or "?"),
        ("queue", row.queue),
        ("why", why.sentence if why else ""),
        ("enqueued", _time(row.enqueued_at)),
        ("due", _time(row.due_at)),
        ("died", _time(row.died_at)),
        ("deleted after", _time(row.kept_until)),
        ("deadline", _time(detail.deadline)),
        ("attempts", f"{ended} / {row.retry + 1}" if row.type else str(ended)),
        ("crashes", str(row.crashes or "")),
        ("snoozes", str(detail.snoozes or "")),
        ("server", row.server or ""),
        ("lease expires", _time(row.lease_until)),
        ("progress", percent(row.progress)),
        *((name, _duration(value)) for name, value in durations),
        ("priority", str(row.priority)),
        ("limits", ", ".join(detail.limits)),
        ("fairness key", detail.fairness_key or ""),
        ("unique lock", _lock(detail)),
        ("debounce", _debounce(detail)),
        ("runs again", _time(detail.next_run_at)),
        ("message", f"not readable: {detail.message_error}" if detail.message_error else ""),
    ]


def _time(time: datetime | None) -> str:
    return "" if time is None else f"{local_time(time)} ({relative(time)})"


def _duration(value: float | str | None) -> str:
    return value if isinstance(value, str) else "" if value is None else duration(value)


def _debounce(detail: TaskDetail) -> str:
    if detail.debounce is None:
        return "the next call with its unique key replaces this task" if detail.replaces else ""
    longest = "" if detail.debounce_max is None else f", at most {duration(detail.debounce_max)}"
    return f"{duration(detail.debounce)} after the last call{longest}"


def _lock(detail: TaskDetail) -> str:
    if not detail.lock:
        return ""
    if detail.lock_holder is None:
        return f"{detail.lock}, held by no task"
    if detail.lock_holder == detail.row.id:
        return detail.lock
    return f"{detail.lock}, held by task {detail.lock_holder}"


def _print_headers(detail: TaskDetail) -> None:
    if detail.headers:
        _print_heading("headers")
        for name, value in list(detail.headers.items())[:HEADERS]:
            more = " ..." if len(value) > CHARACTERS else ""
            print_line(f"  {name[:CHARACTERS]}: {value[:CHARACTERS]}{more}")
        if len(detail.headers) > HEADERS:
            print_line(f"  ... {len(detail.headers) - HEADERS} more: --json prints them")


def _print_shown(title: str, shown: Shown, length: int | None, *, raw: bool = False) -> None:
    kind = shown.kind if length is None else f"{shown.kind}, {size(length)}"
    lines = shown.text[:CHARACTERS].split("\n")[:LINES]
    is_cut = shown.cut or "\n".join(lines) != shown.text
    _print_heading(f"{title} ({kind})")
    for line in escaped_lines("\n".join(lines)):
        print_raw(f"  {line}")
    if is_cut:
        print_line(f"  ... cut here: {'--raw' if raw else '--json'} prints all of it")


def _print_block(title: str, note: str, text: str) -> None:
    _print_heading(f"{title} ({note})" if note else title)
    for line in escaped_lines(text[:TEXT_LIMIT]):
        print_raw(f"  {line}")
    if len(text) > TEXT_LIMIT:
        print_line("  ... cut here: --json prints all of it")


def _print_history(detail: TaskDetail) -> None:
    if not detail.history:
        return
    _print_heading("failed attempts")
    columns = [
        Column("", right=True), Column("AT"), Column("SERVER", shrink=True),
        Column("ERROR", shrink=True),
    ]  # fmt: skip
    print_table(
        columns,
        [
            [str(attempt.number), local_time(attempt.at), attempt.server, attempt.error]
            for attempt in detail.history
        ],
    )


def _print_timeline(detail: TaskDetail) -> None:
    _print_heading("timeline")
    rows = [
        [local_time(event.at) if event.at else "", relative(event.at), event.label, event.detail]
        for event in detail.events
    ]
    columns = [Column("AT"), Column(""), Column("WHAT"), Column("", shrink=True)]
    print_table(columns, rows)


def _print_heading(text: str) -> None:
    print_raw("")
    print_line(text, "bold")


def print_stack(id: str, queue: str | None, store: StoreOptions, *, as_json: bool) -> None:
    """Print the stack of a task's handler; exit if the handler is not running."""
    with open_store(store) as session:
        answer = session.run(_stack(session.inspector, id, queue))
    if as_json:
        print_json(answer)
        return
    for line in escaped_lines(answer.stack.rstrip("\n")):
        print_raw(line)


async def _stack(inspector: Inspector, id: str, queue: str | None) -> HandlerStack:
    name = await queue_of(inspector, id, queue)
    answer = await inspector.stack(id, queue=name)
    if answer is None:
        exit_with(f"task {id} is not running, or its server does not answer (is its loop blocked?)")
    if not answer.stack:
        exit_with(f"the handler of task {id} has not started, or has ended")
    return answer
