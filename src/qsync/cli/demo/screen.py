"""What the demo prints: progress while it runs, and the account at its end."""

from __future__ import annotations

import time
from typing import Final, Literal

from rich.console import Console
from rich.status import Status
from rich.table import Table
from rich.text import Text

from qsync.cli.demo.account import End, Summary

NEXT_STEPS: Final = """\
What next: save this as tasks.py,

    from qsync import Qsync

    app = Qsync()

    @app.task()
    def greet(name: str) -> None:
        print("Hello,", name)

serve it in one terminal, and enqueue a task in another one:

    export QSYNC_URL=embedded://     # in both; or redis://localhost:6379
    qsync worker tasks:app
    python -c 'import tasks; tasks.greet.enqueue_sync("world")'"""


class DemoError(Exception):
    """The demo cannot continue; the message says why."""


class Screen:
    """Shows progress: a line that changes at a terminal, a line a second elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._began = self._shown_at = time.monotonic()
        self.status: Status = console.status("starting")

    def tell(self, text: str, *, loud: bool = False) -> None:
        """Print a line about something that happened."""
        line = Text(f"{time.monotonic() - self._began:6.1f} s   {text}", "bold red" if loud else "")
        self._console.print(line, soft_wrap=True)

    def show(self, line: str) -> None:
        """Show how far the tasks are."""
        self.status.update(line)
        if not self._console.is_terminal and time.monotonic() >= self._shown_at + 1:
            self._shown_at = time.monotonic()
            self.tell(line)


def _mark(ok: bool, mark: str, text: str) -> Text:
    return Text.assemble((mark if ok else "WRONG ", "green" if ok else "bold red"), text)


def print_summary(summary: Summary, console: Console) -> None:
    """Print the account."""
    table = Table(box=None, padding=(0, 1), pad_edge=False, collapse_padding=True)
    for column in ("kind", "offered", "refused", *End, "checked"):
        side: Literal["left", "right"] = "left" if column in ("kind", "checked") else "right"
        table.add_column(column, justify=side, no_wrap=True)
    for row in summary.kinds:
        counts = (row.offered, row.refused, *row.ends.values())
        cells = [f"{count:,}" if count else "" for count in counts]
        table.add_row(row.kind, *cells, _mark(row.ok, "", row.finding))
    console.print(table, "", highlight=False)
    for check in summary.findings:
        console.print(_mark(check.ok, "   ok ", check.text), soft_wrap=True)
    verdict = Text("\nEvery task is accounted for.\n", "bold green")
    if not summary.ok:
        verdict = Text("\nSomething is wrong: see the lines that say WRONG.\n", "bold red")
    console.print(verdict, NEXT_STEPS, highlight=False, markup=False, soft_wrap=True, sep="\n")
