"""What the demo shows at its end."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from qsync.cli.demo.check import Summary
from qsync.cli.demo.evidence import Fate

NEXT_STEPS = """\
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


def show(summary: Summary, console: Console) -> None:
    """Print the account."""
    console.print(_table(summary), highlight=False)
    console.print()
    lines = Table.grid(padding=(0, 1))
    for finding in summary.findings:
        lines.add_row(_mark(finding.ok), Text(finding.text))
    for text in _measures(summary.numbers):
        lines.add_row("", text)
    console.print(lines, highlight=False)
    console.print()
    verdict = Text("Every task is accounted for.", "bold green")
    if not summary.ok:
        verdict = Text(
            "Something is not as it should be: see the lines that say WRONG.", "bold red"
        )
    console.print(verdict)
    console.print()
    console.print(NEXT_STEPS, highlight=False, markup=False, soft_wrap=True)


def _table(summary: Summary) -> Table:
    table = Table(box=None, padding=(0, 1), pad_edge=False, collapse_padding=True, show_footer=True)
    table.add_column("kind", "all", no_wrap=True)
    totals = {
        "offered": sum(row.offered for row in summary.rows),
        "refused": sum(row.refused for row in summary.rows),
        **{fate.value: summary.total(fate) for fate in Fate},
    }
    for name, total in totals.items():
        table.add_column(name, f"{total:,}", justify="right", no_wrap=True, min_width=len(name))
    table.add_column("checked", no_wrap=True)
    for row in summary.rows:
        cells = [row.offered, row.refused, *(row.ends[fate] for fate in Fate)]
        table.add_row(
            row.kind, *(f"{cell:,}" if cell else "" for cell in cells),
            Text(row.finding if row.ok else f"WRONG: {row.finding}", "green" if row.ok else "red"),
        )  # fmt: skip
    return table


def _measures(numbers: dict[str, float]) -> list[str]:
    n = numbers
    return [
        f"{n['hashed']:,.0f} blocks hashed in {n['hashing_seconds']:.1f} s: "
        f"{n['tasks_per_second']:,.0f} tasks/s, {n['tasks_per_second_peak']:,.0f} in the best "
        f"second (the plain loop, without a queue: {n['loop_seconds']:.2f} s)",
        f"{n['runs']:,.0f} runs, of them {n['failed_attempts']:,.0f} failed attempts and "
        f"{n['repeated_runs']:,.0f} repeats after a crash; {n['done_twice']:,.0f} tasks done twice",
        f"critical queue, beside that backlog: starts after {n['start_p50_ms']:.1f} ms "
        f"(p99 {n['start_p99_ms']:.0f}, max {n['start_max_ms']:.0f}), result after "
        f"{n['round_trip_p50_ms']:.1f} ms (p99 {n['round_trip_p99_ms']:.0f})",
    ]


def _mark(ok: bool) -> Text:
    return Text("   ok", "green") if ok else Text("WRONG", "bold red")


def as_json(summary: Summary) -> str:
    """The account as JSON."""
    rows: list[dict[str, Any]] = [{"accepted": row.accepted, **asdict(row)} for row in summary.rows]
    return json.dumps(
        {
            "ok": summary.ok,
            "kinds": rows,
            "findings": [asdict(finding) for finding in summary.findings],
            "numbers": {name: round(number, 3) for name, number in summary.numbers.items()},
        },
        indent=2,
    )
