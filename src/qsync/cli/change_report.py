"""Reports the outcomes of requested changes, one line each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import typer

from qsync.cli.command import NOT_DONE, command_path
from qsync.cli.output import print_json, print_line
from qsync.cli.store import task_missing
from qsync.formatting import local_time
from qsync.inspector import Change
from qsync.state import TaskState
from qsync.worker.logs import escape


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of a change to the object with this id or name."""

    id: str
    queue: str | None
    change: Change

    def as_dict(self, key: str) -> dict[str, Any]:
        """Return the outcome as a JSON object; `key` names the field that holds the id."""
        change = self.change
        fields = {
            "state": change.state, "holder": change.holder, "server": change.server,
            "why": change.why, "at": change.at,
        }  # fmt: skip
        present = {name: value for name, value in fields.items() if value is not None}
        return {key: self.id, "queue": self.queue, "outcome": change.outcome, **present}


def finish(outcomes: Sequence[Outcome], done: str, *, as_json: bool, key: str = "id") -> None:
    """Print the outcomes; exit with 1 if a change was not made."""
    if as_json:
        print_json([outcome.as_dict(key) for outcome in outcomes])
    for outcome in outcomes:
        if outcome.change.ok and not as_json:
            print_line(f"{outcome.id}: {_success(outcome, done)}")
        elif not outcome.change.ok:
            typer.echo(f"{command_path()}: {escape(_failure(outcome))}", err=True)
    if not all(outcome.change.ok for outcome in outcomes):
        raise typer.Exit(NOT_DONE)


def _success(outcome: Outcome, done: str) -> str:
    change = outcome.change
    if change.at is not None:
        return f"{done} {local_time(change.at)}"
    if change.state is TaskState.LIMITED:
        done = done.replace("pending now", "limited now")
    if change.outcome == "done" or change.server == outcome.id:
        return done
    return f"request sent to server {change.server}"


def _failure(outcome: Outcome) -> str:
    change, name = outcome.change, outcome.id
    match change.outcome:
        case "not_found":
            return change.why or task_missing(name, outcome.queue)
        case "too_late":
            return f"too late: task {name} is {change.state}"
        case "duplicate":
            return f"task {name} stays {change.state}: {change.holder} holds its unique lock"
        case _:
            return f"{name}: {change.why}"
