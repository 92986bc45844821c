"""Writes tables, lines and JSON to standard output.

Strings in the store come from users, so everything printed here is escaped.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

import msgspec

from qsync.cli.column_widths import PADDING, ColumnSize, fit_columns
from qsync.state import TaskState
from qsync.worker.logs import escape

if TYPE_CHECKING:  # rich is slow to import, and --json does not need it
    from rich.console import Console, RenderableType
    from rich.table import Table

UNLIMITED: Final = 1_000_000
"""Width of a table that is not printed to a terminal; wide enough to cut nothing."""

COLOURS: Final[dict[str, str]] = {
    TaskState.LIMITED: "magenta",
    TaskState.ACTIVE: "cyan",
    TaskState.RETRY: "yellow",
    TaskState.DEAD: "red",
    TaskState.COMPLETED: "green",
    TaskState.CANCELLED: "yellow",
}

_BEYOND_ASCII: Final = re.compile(r"[^\n -~]")


class Column(NamedTuple):
    """A column of a table. On a narrow terminal, only cells of columns with `shrink` are cut."""

    name: str
    right: bool = False
    shrink: bool = False


class Cell(NamedTuple):
    """Text with a style."""

    text: str
    style: str = ""


Row: TypeAlias = Sequence[str | Cell]


def count_cell(count: int, style: str = "") -> Cell:
    """Return a cell for a count; 0 is dim."""
    return Cell(f"{count:,}", style if count else "dim")


def state_cell(state: str) -> Cell:
    """Return a cell for a state, in its colour."""
    return Cell(state, COLOURS.get(state, ""))


def print_json(value: Any) -> None:
    """Print one indented JSON document, without characters that control a terminal."""
    print_raw(json_text(value, indent=2))


def json_text(value: Any, indent: int = -1) -> str:
    """Return JSON without characters that control a terminal; an indent of -1 gives one line."""
    text = msgspec.json.format(msgspec.json.encode(value, enc_hook=str), indent=indent).decode()
    is_unicode = (sys.stdout.encoding or "").lower().startswith("utf")
    return _BEYOND_ASCII.sub(_escape_unprintable if is_unicode else _json_escape, text)


def _escape_unprintable(match: re.Match[str]) -> str:
    return match[0] if match[0].isprintable() else _json_escape(match)


def _json_escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\u{code:04x}" if code < 0x80 else json.dumps(match[0])[1:-1]


def print_raw(text: str) -> None:
    """Print a text as it is; characters that the encoding of standard output lacks are escaped."""
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")


def print_line(text: str, style: str = "") -> None:
    """Print one line without wrapping or cutting it."""
    out = console()
    if style and out.is_terminal:
        from rich.text import Text

        print_raw(render(out, Text(escape(text), style), soft_wrap=True))
    else:
        print_raw(escape(text))


def print_facts(facts: Sequence[tuple[str, str | None]], width: int = 6) -> None:
    """Print one line per fact, with the texts aligned; skip facts without a text."""
    for name, text in facts:
        if text:
            print_line(f"{name.ljust(width)}  {text}")


def escaped_lines(text: str) -> list[str]:
    """Return the lines of a text, each of them escaped."""
    return [escape(line.expandtabs()) for line in text.rstrip("\n").split("\n")]


def print_table(columns: Sequence[Column], rows: Sequence[Row], *, whole: bool = False) -> None:
    """Print the rows, one line each; print nothing if there are none.

    Columns are cut or left out to fit the table into the width of the terminal, as described in
    `column_widths`. Nothing is cut if `whole` is true or standard output is not a terminal.
    """
    if not rows:
        return
    out = console()
    width = None if whole or not out.is_terminal else out.width
    out.width = UNLIMITED
    shown = shown_widths(columns, rows, width)
    print_raw(render(out, table(columns, rows, shown)))
    if left_out := hidden_columns(columns, shown):
        print_line(f"Not shown on this narrow terminal: {', '.join(left_out)}.")


def console() -> Console:
    """Return standard output; it has colours only on a terminal that supports them."""
    from rich.console import Console

    return Console(highlight=False, markup=False, emoji=False)


def render(out: Console, renderable: RenderableType, *, soft_wrap: bool = False) -> str:
    """Return what the console prints, uncropped and without trailing spaces."""
    with out.capture() as captured:
        out.print(renderable, soft_wrap=soft_wrap, crop=False)
    return "\n".join(line.rstrip() for line in captured.get().rstrip("\n").split("\n"))


def table(columns: Sequence[Column], rows: Sequence[Row], shown: Mapping[int, int]) -> Table:
    """Return the rows as a table that a console can print, with the columns in `shown_widths`."""
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=None, padding=(0, PADDING, 0, 0), pad_edge=False, header_style="bold")
    for index, characters in shown.items():
        grid.add_column(
            Text(columns[index].name, no_wrap=True, overflow="ellipsis"),
            justify="right" if columns[index].right else "left",
            no_wrap=True,
            width=characters,
        )
    for row in rows:
        grid.add_row(*(_text(row[index]) for index in shown))
    return grid


def hidden_columns(columns: Sequence[Column], shown: Mapping[int, int]) -> list[str]:
    """Return the headings of the columns that are left out."""
    return [
        column.name for index, column in enumerate(columns) if index not in shown and column.name
    ]


def shown_widths(
    columns: Sequence[Column], rows: Sequence[Row], width: int | None
) -> dict[int, int]:
    """Return the widths of the columns that fit into a width, by index; None cuts nothing."""
    from rich.cells import cell_len

    sizes = []
    for index, column in enumerate(columns):
        texts = [_text(row[index]) for row in rows]
        sizes.append(
            ColumnSize(
                heading=cell_len(column.name),
                cells=max((text.cell_len for text in texts), default=0),
                shrink=column.shrink,
                is_empty=all(text.plain in ("", "0") for text in texts),
            )
        )
    return fit_columns(sizes, UNLIMITED if width is None else width)


def _text(cell: str | Cell) -> Any:
    from rich.text import Text

    text, style = cell if isinstance(cell, Cell) else (cell, "")
    return Text(escape(text), style, no_wrap=True, overflow="ellipsis")
