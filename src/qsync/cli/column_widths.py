"""Fits the columns of a table into the width of a terminal; does no I/O.

The steps, until the table fits:

1. Columns of texts are cut, the widest first, to 8 characters; the first column, which names the
   rows, to 12.
2. Headings that are wider than the cells below them are cut to 5 characters.
3. Columns without any value are left out, from the right.
4. Columns of texts are left out, from the right.

The first column and columns with numbers or times always stay, so a table can still be too wide.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

PADDING: Final = 2
"""Space between two columns, in characters."""

MIN_WIDTH: Final = 8
"""Width to which a column of texts is cut, in characters."""

MIN_FIRST_WIDTH: Final = 12
"""Width to which the first column is cut, in characters."""

MIN_HEADING: Final = 5
"""Width to which a heading is cut, in characters."""


class ColumnSize(NamedTuple):
    """The size of a column; widths are in characters."""

    heading: int
    cells: int
    """Width of the widest cell."""
    shrink: bool
    """Whether the cells can be cut."""
    is_empty: bool
    """Whether no cell has a value other than 0."""


def fit_columns(sizes: Sequence[ColumnSize], width: int) -> dict[int, int]:
    """Return the widths of the columns that are shown, by index, so that they fit if possible."""
    widths = {index: max(size.heading, size.cells) for index, size in enumerate(sizes)}
    texts = [index for index, size in enumerate(sizes) if size.shrink]
    floors = {index: MIN_WIDTH if index else MIN_FIRST_WIDTH for index in texts}
    _cut_widest(widths, floors, width)
    floors = {
        index: max(size.cells, MIN_HEADING)
        for index, size in enumerate(sizes)
        if size.heading > max(size.cells, MIN_HEADING)
    }
    _cut_widest(widths, floors, width)
    empty = [index for index, size in enumerate(sizes) if size.is_empty]
    for index in [*reversed(empty), *reversed(texts)]:
        if index and index in widths and _excess(widths, width) > 0:
            del widths[index]
    _widen(widths, sizes, width)
    return widths


def _excess(widths: dict[int, int], width: int) -> int:
    """Return by how many characters the columns are too wide; negative if there is space left."""
    return sum(widths.values()) + PADDING * (len(widths) - 1) - width


def _cut_widest(widths: dict[int, int], floors: dict[int, int], width: int) -> None:
    """Cut the widest of these columns, down to their floors, until the table fits."""
    for _ in range(max(0, _excess(widths, width))):
        wide = [index for index in floors if widths[index] > floors[index]]
        if not wide:
            return
        widths[max(wide, key=lambda index: widths[index])] -= 1


def _widen(widths: dict[int, int], sizes: Sequence[ColumnSize], width: int) -> None:
    """Give space that is left to columns that were cut, from the left."""
    for index in widths:
        full = max(sizes[index].heading, sizes[index].cells)
        spare = max(0, -_excess(widths, width))
        widths[index] += min(spare, full - widths[index])
