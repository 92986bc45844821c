"""Formats the report of a run as a table and as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from benchmarks.figures import Curve, Figure, Results


@dataclass(slots=True)
class Report:
    """The results by measure, and the machine."""

    machine: dict[str, Any]
    results: dict[str, Results] = field(default_factory=dict)

    @property
    def figures(self) -> list[tuple[str, Figure]]:
        """All figures in order, with the names of their measures."""
        return [
            (name, result)
            for name, results in self.results.items()
            for result in results
            if isinstance(result, Figure)
        ]

    @property
    def curves(self) -> dict[str, Curve]:
        """All curves by name."""
        results = (result for results in self.results.values() for result in results)
        return {result.name: result for result in results if isinstance(result, Curve)}


def print_report(report: Report, console: Console) -> None:
    """Print the results as one table, then describe the machine."""
    table = Table(box=None, padding=(0, 1), pad_edge=False, collapse_padding=True)
    table.add_column("measure", no_wrap=True)
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("unit", no_wrap=True)
    table.add_column("how", style="dim", overflow="fold")
    previous_measure = previous_how = ""
    for measure, figure in report.figures:
        if measure != previous_measure:
            if previous_measure:
                table.add_row()
            previous_how = ""
        how = "" if figure.how == previous_how else figure.how
        table.add_row(figure.name, Text(format_value(figure.value), "bold"), figure.unit, Text(how))
        previous_measure, previous_how = measure, figure.how
    console.print(table, highlight=False)
    console.print()
    console.print(describe_machine(report.machine), highlight=False, markup=False)


def describe_machine(machine: dict[str, Any]) -> str:
    """Return one sentence about the machine and the versions."""
    built = "with" if machine["python_pgo"] else "without"
    return (
        f"qsync {machine['qsync']} on {machine['python']} (built {built} profile-guided "
        f"optimisation), redis-py {machine['redis_py']}, {machine['store']} at "
        f"{machine['store_at']}; {machine['cores']} cores of {machine['cpu']}, "
        f"{machine['system']}, load {machine['load_before']} before the run; {machine['date']}"
    )


def format_value(value: float | None) -> str:
    """Format a value with three significant digits, or with all digits before the decimal point."""
    if value is None:
        return "unknown"
    if value == int(value) and abs(value) < 1000:
        return f"{value:.0f}"
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f}"


def as_json(report: Report) -> str:
    """Return the report as JSON, with unrounded values."""
    return json.dumps(
        {
            "machine": report.machine,
            "figures": [{"measure": name, **asdict(figure)} for name, figure in report.figures],
            "curves": [asdict(curve) for curve in report.curves.values()],
        },
        indent=2,
    )
