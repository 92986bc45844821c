"""Bulk changes to the tasks in a state that match the filters: count, run in batches, report."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

import typer

from qsync.cli.command import INTERRUPTED
from qsync.cli.output import print_json, print_line
from qsync.cli.prompts import ProgressLine, confirm
from qsync.cli.store import StoreSession, state_counts
from qsync.formatting import plural
from qsync.inspector import Filter, Inspector, Step
from qsync.inspector.tasks import MAX_PAGE_SIZE
from qsync.state import TaskState

MakeStep = Callable[..., Awaitable[Step]]
"""Changes one batch of the tasks in a queue and state, as `Inspector.retry_matching` does."""


class SelectedTasks(Protocol):
    """The queue and the filter that select tasks; a `queue` of None means all queues."""

    @property
    def queue(self) -> str | None: ...
    @property
    def filter(self) -> Filter | None: ...


@dataclass(frozen=True, slots=True)
class BulkJob:
    """A bulk change to all tasks in a state that match the filters."""

    session: StoreSession
    filters: SelectedTasks
    state: TaskState
    verb: str
    """Past participle for the report, e.g. `deleted` in "3 of 5 dead tasks deleted"."""
    as_json: bool

    def count(self) -> tuple[int, int]:
        """Return the number of matching tasks and the number of all tasks in the state."""
        return self.session.run(self._count(self.session.inspector))

    def carry_out(self, make_step: MakeStep, *, dry_run: bool, question: str | None = None) -> None:
        """Change the tasks, or print how many would be changed.

        `question` is the verb in the confirmation prompt, e.g. "Delete"; None skips the prompt.
        """
        if dry_run:
            self._print_dry_run()
            return
        if question is not None:
            self._confirm(question)
        self._run(make_step)

    def _print_dry_run(self) -> None:
        """Print how many tasks would be changed."""
        count, total = self.count()
        if self.as_json:
            print_json({"scanned": total, "found": count, "dry_run": True})
        else:
            print_line(f"{count:,} of {total:,} {self.state} tasks would be {self.verb}")

    def _confirm(self, verb: str) -> None:
        """Ask for confirmation with the number of tasks; do not ask if no task matches."""
        if number := self.count()[0]:
            confirm(f"{verb} {plural(number, f'{self.state} task')}?", yes=False)

    def _run(self, make_step: MakeStep) -> None:
        """Run all steps for all queues and print a report; on Ctrl-C, report the steps so far."""
        steps: list[Step] = []
        try:
            self.session.run(self._steps(self.session.inspector, make_step, steps))
        except KeyboardInterrupt:
            self._print_report(steps)
            typer.echo("interrupted: the other tasks are unchanged", err=True)
            raise typer.Exit(INTERRUPTED) from None
        self._print_report(steps)

    async def _queues(self, inspector: Inspector) -> dict[str, int]:
        """Return the queues that have tasks in the state, each with its number of tasks."""
        counts = await state_counts(inspector, self.filters.queue)
        return {name: states[self.state] for name, states in counts.items() if states[self.state]}

    async def _count(self, inspector: Inspector) -> tuple[int, int]:
        counts = await self._queues(inspector)
        total, filter = sum(counts.values()), self.filters.filter
        if filter is None:
            return total, total
        matches = scanned = 0
        with ProgressLine() as progress:
            for name in counts:
                cursor: str | None = None
                while True:
                    page = await inspector.tasks(
                        name, self.state, limit=MAX_PAGE_SIZE, cursor=cursor, filter=filter,
                        newest_first=False,
                    )  # fmt: skip
                    matches, scanned = matches + len(page.tasks), scanned + page.scanned
                    progress.show(f"searched {scanned:,} of {total:,}, {matches:,} match")
                    cursor = page.cursor
                    if cursor is None:
                        break
        return matches, total

    async def _steps(self, inspector: Inspector, make_step: MakeStep, steps: list[Step]) -> None:
        counts = await self._queues(inspector)
        total, done = sum(counts.values()), Step(scanned=0, done=0, cursor=None)
        with ProgressLine() as progress:
            for name in counts:
                async for step in inspector.steps(make_step, name, self.state, self.filters.filter):
                    steps.append(step)
                    done += step
                    progress.show(
                        f"searched {done.scanned:,} of {total:,}, {done.done:,} {self.verb}"
                    )

    def _print_report(self, steps: list[Step]) -> None:
        total = sum(steps, Step(scanned=0, done=0, cursor=None))
        if self.as_json:
            names = ("scanned", "done", "duplicate", "too_late")
            print_json({name: getattr(total, name) for name in names})
            return
        print_line(f"{total.done:,} of {total.scanned:,} {self.state} tasks {self.verb}")
        if total.duplicate:
            verb = "stays" if total.duplicate == 1 else "stay"
            print_line(
                f"{plural(total.duplicate, 'task')} {verb} dead: other tasks hold the unique locks"
            )
        if total.too_late:
            print_line(f"{plural(total.too_late, 'task')} changed state in the meantime")
