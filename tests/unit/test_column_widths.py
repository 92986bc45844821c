"""Tables on narrow terminals: which columns are cut, and which are left out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsync.cli.column_widths import MIN_FIRST_WIDTH, PADDING, ColumnSize, fit_columns
from qsync.cli.output import Column, Row, hidden_columns, render, shown_widths, table

STATES = ("PENDING", "LIMITED", "ACTIVE", "SCHEDULED", "RETRY", "COMPLETED", "CANCELLED", "DEAD")
COLUMNS = [
    Column("QUEUE", shrink=True), *(Column(name, right=True) for name in STATES),
    Column("OLDEST", right=True),
]  # fmt: skip
ROWS: list[Row] = [
    ["payments-eu", "0", "19", "1", "0", "0", "0", "0", "0", ""],
    ["mail", "1", "0", "0", "0", "0", "0", "0", "7", "12 s"],
]


def printed(width: int) -> list[str]:
    from rich.console import Console

    return render(
        Console(width=1000), table(COLUMNS, ROWS, shown_widths(COLUMNS, ROWS, width))
    ).split("\n")


@pytest.mark.parametrize("width", [120, 80, 72, 60, 50])
def test_rows_keep_their_names_and_fit_the_terminal(width: int) -> None:
    lines = printed(width)
    assert [line.split()[0] for line in lines] == ["QUEUE", "payments-eu", "mail"]
    assert max(map(len, lines)) <= width
    assert lines[2].split()[-3:] == ["7", "12", "s"]


def test_columns_without_a_value_are_left_out_first() -> None:
    assert hidden_columns(COLUMNS, shown_widths(COLUMNS, ROWS, 80)) == []
    assert hidden_columns(COLUMNS, shown_widths(COLUMNS, ROWS, 60)) == ["COMPLETED", "CANCELLED"]


SIZES = st.builds(ColumnSize, st.integers(0, 20), st.integers(0, 60), st.booleans(), st.booleans())


@given(st.lists(SIZES, min_size=1, max_size=12), st.integers(1, 200))
def test_columns_fit_unless_nothing_more_can_be_cut(sizes: list[ColumnSize], width: int) -> None:
    widths = fit_columns(sizes, width)
    full = [max(size.heading, size.cells) for size in sizes]
    assert widths[0] >= min(full[0], MIN_FIRST_WIDTH, max(sizes[0].cells, 5))
    total = sum(widths.values()) + PADDING * (len(widths) - 1)
    if sum(full) + PADDING * (len(full) - 1) <= width:
        assert [*widths.values()] == full
    elif total > width:
        assert all(
            not sizes[index].shrink and not sizes[index].is_empty for index in widths if index
        )
    for index, size in enumerate(sizes):
        assert index not in widths or size.shrink or widths[index] >= size.cells
