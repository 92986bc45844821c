"""What the benchmark shows at its end, and what it writes."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from qsync.cli.bench.figure import Curve, Figure, Found


@dataclass(slots=True)
class Report:
    """What was measured, by the name of the measure, and on what."""

    machine: dict[str, Any]
    found: dict[str, Found] = field(default_factory=dict)

    @property
    def figures(self) -> list[Figure]:
        """All values, in order."""
        return [one for found in self.found.values() for one in found if isinstance(one, Figure)]

    @property
    def curves(self) -> dict[str, Curve]:
        """All curves by name."""
        every = (one for found in self.found.values() for one in found)
        return {one.name: one for one in every if isinstance(one, Curve)}


def show(report: Report, console: Console) -> None:
    """Print the machine and one table."""
    table = Table(box=None, padding=(0, 1), pad_edge=False, collapse_padding=True)
    table.add_column("measure", no_wrap=True)
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("unit", no_wrap=True)
    table.add_column("how", style="dim", overflow="fold")
    for found in report.found.values():
        if table.row_count:
            table.add_row()
        before = ""
        for figure in (one for one in found if isinstance(one, Figure)):
            how = "" if figure.how == before else figure.how
            before = figure.how
            table.add_row(figure.name, Text(shown(figure.value), "bold"), figure.unit, Text(how))
    console.print(table, highlight=False)
    console.print()
    console.print(about(report.machine), highlight=False, markup=False)


def about(machine: dict[str, Any]) -> str:
    """One sentence about where the figures are from."""
    built = "with" if machine["python_pgo"] else "without"
    return (
        f"qsync {machine['qsync']} on {machine['python']} (built {built} profile-guided "
        f"optimisation), redis-py {machine['redis_py']}, {machine['store']} at "
        f"{machine['store_at']}; {machine['cores']} cores of {machine['cpu']}, "
        f"{machine['system']}, load {machine['load_before']} beforehand; {machine['date']}"
    )


def shown(value: float | None) -> str:
    """A value with three digits that say something, or all before the point."""
    if value is None:
        return "not told"
    if value == int(value) and abs(value) < 1000:
        return f"{value:.0f}"
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f}"


def as_json(report: Report) -> str:
    """The report as JSON, values as they were measured."""
    return json.dumps(
        {
            "machine": report.machine,
            "figures": [
                {"measure": name, **asdict(one)}
                for name, found in report.found.items()
                for one in found
                if isinstance(one, Figure)
            ],
            "curves": [asdict(curve) for curve in report.curves.values()],
        },
        indent=2,
    )
