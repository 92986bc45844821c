"""Tables: one line for each row. At a terminal they fit its width; elsewhere nothing is cut."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from qsync.cli.text import print_out
from qsync.state import TaskState
from qsync.worker.logs import escape

if TYPE_CHECKING:  # rich takes long to import, and --json does without
    from rich.console import Console
    from rich.table import Table

GAP: Final = 2
LEAST: Final = 8
"""A column that gives way keeps so many characters."""

COLOURS: Final[dict[str, str]] = {
    TaskState.ACTIVE: "cyan",
    TaskState.RETRY: "yellow",
    TaskState.DEAD: "red",
    TaskState.COMPLETED: "green",
    TaskState.CANCELLED: "yellow",
}


class Column(NamedTuple):
    """A column of a table; one that is `flexible` gives way where the terminal is narrow."""

    name: str
    right: bool = False
    flexible: bool = False


class Cell(NamedTuple):
    """A text with a style; it is escaped when it is shown."""

    text: str
    style: str = ""


Row: TypeAlias = Sequence[str | Cell]


def number(count: int, style: str = "") -> Cell:
    """A count; nothing is dim."""
    return Cell(f"{count:,}", style if count else "dim")


def state_cell(state: str) -> Cell:
    """A state in its colour."""
    return Cell(state, COLOURS.get(state, ""))


def console() -> Console:
    """Standard output; colours only where there is a terminal that has them."""
    from rich.console import Console

    return Console(highlight=False, markup=False, emoji=False)


def print_table(columns: Sequence[Column], rows: Sequence[Row]) -> None:
    """The rows on standard output; without rows nothing."""
    if not rows:
        return
    out = console()
    table, width = build(columns, rows, out.width if out.is_terminal else None)
    out.width = width + GAP  # until 15, rich has a gap after the last column, too
    with out.capture() as captured:
        out.print(table)
    print_out("\n".join(line.rstrip() for line in captured.get().rstrip("\n").split("\n")))


def print_line(text: str, style: str = "") -> None:
    """A line on standard output, as long as it is; escaped."""
    out = console()
    if style and out.is_terminal:
        from rich.text import Text

        with out.capture() as captured:
            out.print(Text(escape(text), style), soft_wrap=True, end="")
        print_out(captured.get())
    else:
        print_out(escape(text))


def build(columns: Sequence[Column], rows: Sequence[Row], width: int | None) -> tuple[Table, int]:
    """The table, and how wide it is: as `width`, unless what does not give way is wider."""
    from rich.cells import cell_len
    from rich.table import Table
    from rich.text import Text

    cells = [[cell if isinstance(cell, Cell) else Cell(cell) for cell in row] for row in rows]
    cells = [[Cell(escape(cell.text), cell.style) for cell in row] for row in cells]
    widths = [
        max([cell_len(column.name), *(cell_len(row[at].text) for row in cells)])
        for at, column in enumerate(columns)
    ]
    if width is not None:
        widths = _fit(columns, widths, width - GAP * (len(columns) - 1))
    table = Table(box=None, padding=(0, GAP, 0, 0), pad_edge=False, header_style="bold")
    for column, wide in zip(columns, widths, strict=True):
        side = "right" if column.right else "left"
        table.add_column(column.name, justify=side, width=wide, no_wrap=True, overflow="ellipsis")  # type: ignore[arg-type]  # one of the two
    for row in cells:
        table.add_row(*(Text(cell.text, cell.style) for cell in row))
    return table, sum(widths) + GAP * (len(columns) - 1)


def _fit(columns: Sequence[Column], widths: list[int], width: int) -> list[int]:
    """Take from the widest of the flexible columns, until all fit or none can give more."""
    fitted = list(widths)
    flexible = [at for at, column in enumerate(columns) if column.flexible]
    while flexible and sum(fitted) > width:
        widest = max(flexible, key=lambda at: fitted[at])
        least = max(LEAST, len(columns[widest].name))
        if fitted[widest] <= least:
            break
        fitted[widest] -= 1
    return fitted
