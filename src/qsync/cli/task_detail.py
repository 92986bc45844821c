"""One task whole, for a person."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from qsync.cli.tables import COLOURS, Column, print_line, print_table
from qsync.cli.text import (
    clock,
    lines_of,
    print_out,
    progress,
    relative,
    short_duration,
    size,
    timestamp,
)
from qsync.inspector import Explanation, Shown, TaskDetail
from qsync.inspector.msgpack_json import TEXT_LIMIT
from qsync.message import ERROR_LIMIT
from qsync.state import TaskState

LINES: Final = 100
CHARACTERS: Final = 8_000
"""How much is printed of a payload, a result, or a header."""

HEADERS: Final = 500


def print_task(detail: TaskDetail, why: Explanation | None) -> None:
    """All that is known of a task."""
    rows = [(name, text) for name, text in _facts(detail, why) if text]
    print_line(f"Task {detail.row.id}", "bold")
    wide = max(len(name) for name, _ in rows)
    for name, text in rows:
        style = COLOURS.get(detail.row.state, "") if name == "state" else ""
        print_line(f"{name.ljust(wide)}  {text}", style)
    _print_headers(detail)
    _print_shown("payload", detail.shown, len(detail.payload), raw=True)
    if detail.result is not None:
        _print_shown("result", detail.result, None)
    if detail.result_error:
        _print_block("result", "", detail.result_error)
    _print_history(detail)
    _print_timeline(detail)
    if detail.error:
        cut = len(detail.error.encode(errors="replace")) >= ERROR_LIMIT - 8
        note = f"{ERROR_LIMIT // 1024} KiB of it are kept: how it begins and how it ends"
        _print_block("error", note if cut else "", detail.error)


def _seconds(value: float | str | None) -> str:
    return value if isinstance(value, str) else "" if value is None else short_duration(value)


def _facts(detail: TaskDetail, why: Explanation | None) -> list[tuple[str, str]]:
    row = detail.row
    asked = row.cancelled and row.state is not TaskState.CANCELLED
    state = f"{row.state}, cancel asked for" if asked else str(row.state)
    seconds: Sequence[tuple[str, float | str | None]] = (
        ("timeout", detail.timeout), ("retry delay", detail.retry_delay),
        ("kept for", detail.retention),
    )  # fmt: skip
    return [
        ("state", state),
        ("type", row.type or "?"),
        ("queue", row.queue),
        ("why", why.sentence if why else ""),
        ("enqueued", timestamp(row.enqueued_at)),
        ("due", timestamp(row.due_at)),
        ("died", timestamp(row.died_at)),
        ("kept until", timestamp(row.kept_until)),
        ("deadline", timestamp(detail.deadline)),
        ("attempts", _attempts(detail)),
        ("crashes", str(row.crashes or "")),
        ("server", row.server or ""),
        ("lease until", timestamp(row.lease_until)),
        ("progress", progress(row.progress)),
        *((name, _seconds(value)) for name, value in seconds),
        ("fairness key", detail.fairness_key or ""),
        ("unique lock", _lock(detail)),
        ("message", f"cannot be read: {detail.message_error}" if detail.message_error else ""),
    ]


def _attempts(detail: TaskDetail) -> str:
    row = detail.row
    return f"{row.attempts} of {row.retry + 1} failed" if row.type else f"{row.attempts} failed"


def _lock(detail: TaskDetail) -> str:
    if not detail.lock:
        return ""
    if detail.lock_holder in (None, detail.row.id):
        return f"{detail.lock}{'' if detail.lock_holder else ', which nobody has'}"
    return f"{detail.lock}, which {detail.lock_holder} has"


def _print_headers(detail: TaskDetail) -> None:
    if detail.headers:
        _heading("headers")
        for name, value in list(detail.headers.items())[:HEADERS]:
            more = " ..." if len(value) > CHARACTERS else ""
            print_line(f"  {name[:CHARACTERS]}: {value[:CHARACTERS]}{more}")
        if len(detail.headers) > HEADERS:
            print_line(f"  ... {len(detail.headers) - HEADERS} more: --json has them")


def _print_shown(title: str, shown: Shown, length: int | None, *, raw: bool = False) -> None:
    about = shown.kind if length is None else f"{shown.kind}, {size(length)}"
    text = shown.text[:CHARACTERS]
    lines = text.split("\n")[:LINES]
    cut = shown.cut or "\n".join(lines) != shown.text
    _heading(f"{title} ({about})")
    for line in lines_of("\n".join(lines)):
        print_out(f"  {line}")
    if cut:
        print_line(f"  ... there is more: {'--raw writes all of it' if raw else '--json has it'}")


def _print_block(title: str, note: str, text: str) -> None:
    _heading(f"{title} ({note})" if note else title)
    for line in lines_of(text[:TEXT_LIMIT]):
        print_out(f"  {line}")
    if len(text) > TEXT_LIMIT:
        print_line("  ... there is more: --json has it")


def _print_history(detail: TaskDetail) -> None:
    if not detail.history:
        return
    _heading("failed attempts")
    columns = [
        Column("", right=True), Column("AT"), Column("SERVER", flexible=True),
        Column("ERROR", flexible=True),
    ]  # fmt: skip
    print_table(
        columns,
        [[str(one.number), clock(one.at), one.server, one.error] for one in detail.history],
    )


def _print_timeline(detail: TaskDetail) -> None:
    _heading("timeline")
    rows = [
        [clock(event.at) if event.at else "", relative(event.at), event.what, event.detail]
        for event in detail.events
    ]
    columns = [Column("AT"), Column(""), Column("WHAT"), Column("", flexible=True)]
    print_table(columns, rows)


def _heading(text: str) -> None:
    print_out("")
    print_line(text, "bold")
