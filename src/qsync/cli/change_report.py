"""What became of changes that were asked for, one line each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import typer

from qsync.cli.command import command_path
from qsync.cli.store import NOT_DONE, task_missing
from qsync.cli.tables import print_line
from qsync.cli.text import print_json
from qsync.inspector import Change
from qsync.worker.logs import escape


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of the wish to change something of this id, or name."""

    id: str
    queue: str | None
    change: Change

    def as_dict(self, key: str = "id") -> dict[str, Any]:
        """For JSON: what is known of it."""
        change = self.change
        known = {
            "state": change.state, "holder": change.holder, "server": change.server,
            "why": change.why,
        }  # fmt: skip
        there = {name: value for name, value in known.items() if value is not None}
        return {key: self.id, "queue": self.queue, "outcome": change.outcome, **there}


def finish(outcomes: Sequence[Outcome], done: str, *, as_json: bool, key: str = "id") -> None:
    """Print what became of each; the end with 1 when one was not done."""
    if as_json:
        print_json([outcome.as_dict(key) for outcome in outcomes])
    for outcome in outcomes:
        if outcome.change.ok and not as_json:
            print_line(f"{outcome.id}: {_done(outcome, done)}")
        elif not outcome.change.ok:
            typer.echo(f"{command_path()}: {escape(_not_done(outcome))}", err=True)
    if not all(outcome.change.ok for outcome in outcomes):
        raise typer.Exit(NOT_DONE)


def _done(outcome: Outcome, done: str) -> str:
    change = outcome.change
    if change.outcome == "done" or change.server == outcome.id:
        return done
    return f"server {change.server} has been told"


def _not_done(outcome: Outcome) -> str:
    change, name = outcome.change, outcome.id
    match change.outcome:
        case "not_found":
            return change.why or task_missing(name, outcome.queue)
        case "too_late":
            return f"too late: task {name} is {change.state}"
        case "duplicate":
            return f"task {name} stays {change.state}: {change.holder} has its unique lock"
        case _:
            return f"{name}: {change.why}"
