"""Prints the rows of lists in the chosen format, once or repeatedly."""

from __future__ import annotations

import contextlib
import csv
import io
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, Final

import msgspec
import typer

from qsync.cli.command import USAGE, exit_with, print_problem
from qsync.cli.output import json_text, print_json, print_raw
from qsync.errors import StoreUnavailable
from qsync.formatting import csv_cell

CLEAR: Final = "\x1b[H\x1b[2J"
"""Escape sequence that clears a terminal."""


MAX_PAUSE_S: Final = 86_400
"""Longest interval that --watch accepts, in seconds."""


class Format(StrEnum):
    """The formats in which a list can be printed."""

    TABLE = "table"
    WIDE = "wide"
    JSON = "json"
    JSONL = "jsonl"
    CSV = "csv"


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputOptions:
    """The options of commands that print lists."""

    output: Annotated[
        Format,
        typer.Option(
            "--output", "-o", metavar="FORMAT", show_default=False,
            help="table, wide (a table in which nothing is cut), json, jsonl (one JSON document "
            "per line) or csv.  [default: table]",
        ),
    ] = Format.TABLE  # fmt: skip
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document; same as -o json.")
    ] = False
    watch: Annotated[
        float | None,
        typer.Option(
            "--watch", "-w", metavar="SECONDS", min=0.1, max=MAX_PAUSE_S, show_default=False,
            help="Print the list again every SECONDS, until Ctrl-C.",
        ),
    ] = None  # fmt: skip

    @property
    def format(self) -> Format:
        """The chosen format; exits if the options name two different formats."""
        if not self.as_json:
            return self.output
        if self.output not in (Format.TABLE, Format.JSON):
            exit_with(f"--json and -o {self.output} cannot be used together", USAGE)
        return Format.JSON

    def repeat(self, show: Callable[[], None]) -> None:
        """Call `show` once; with --watch, repeat until Ctrl-C, even while the store is down."""
        if self.watch is None:
            show()
            return
        has_shown = False
        with contextlib.suppress(KeyboardInterrupt):
            while True:
                if sys.stdout.isatty():
                    sys.stdout.write(CLEAR)
                try:
                    show()
                    has_shown = True
                except StoreUnavailable as error:
                    if not has_shown:
                        raise
                    print_problem(f"{error}; trying again")
                sys.stdout.flush()
                time.sleep(self.watch)

    def print_rows(
        self,
        rows: Sequence[msgspec.Struct],
        print_table: Callable[[bool], None],
        document: object = None,
    ) -> None:
        """Print the rows in the chosen format. `print_table` prints them as a table; if its
        argument is true, it cuts no cell.

        With JSON output, print `document` instead of the rows.
        """
        match self.format:
            case Format.JSON:
                print_json(rows if document is None else document)
            case Format.JSONL:
                for row in rows:
                    print_raw(json_text(row))
            case Format.CSV:
                _print_csv(rows)
            case table:
                print_table(table is Format.WIDE)


def _print_csv(rows: Sequence[msgspec.Struct]) -> None:
    """Print a header and a line for each row; the fields of a map become separate columns."""
    flat = [_flat(msgspec.to_builtins(row, enc_hook=str)) for row in rows]
    columns = list(dict.fromkeys(name for row in flat for name in row))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    if columns:
        writer.writerow(columns)
    for row in flat:
        writer.writerow([csv_cell(row.get(name)) for name in columns])
    if text := out.getvalue():
        print_raw(text.removesuffix("\n"))


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, dict):
            flat |= {f"{name}.{key}": inner for key, inner in value.items()}
        else:
            flat[name] = value
    return flat
