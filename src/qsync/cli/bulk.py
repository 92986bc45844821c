"""Work on many tasks of a state: counted beforehand, made in steps, and reported."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import typer

from qsync.cli.prompts import Progress
from qsync.cli.store import INTERRUPTED, StoreSession, all_queues, exit_unknown_queue
from qsync.cli.tables import print_line
from qsync.cli.text import print_json
from qsync.inspector import Filter, Inspector, Step
from qsync.inspector.tasks import LIMIT
from qsync.state import TaskState

MakeStep = Callable[..., Awaitable[Step]]
"""Of queue, filter and cursor: a step, as `Inspector.run_dead` makes one."""


@dataclass(frozen=True, slots=True)
class BulkJob:
    """The tasks of a state that fit, in a queue or in all; and what is to become of them."""

    store: StoreSession
    queue: str | None
    state: TaskState
    filter: Filter | None
    verb: str
    as_json: bool

    def count(self) -> tuple[int, int]:
        """How many tasks are meant, and of how many."""
        return self.store.do(self._count(self.store.inspector))

    def report_dry(self) -> None:
        """Say how many tasks it would be."""
        count, total = self.count()
        if self.as_json:
            print_json({"scanned": total, "found": count, "dry_run": True})
        else:
            print_line(f"{count:,} of {total:,} {self.state} tasks would be {self.verb}")

    def work(self, step: MakeStep) -> None:
        """Make all steps for all queues, and report them, also when they are interrupted."""
        steps: list[Step] = []
        try:
            self.store.do(self._steps(self.store.inspector, step, steps))
        except KeyboardInterrupt:
            self._report(steps)
            typer.echo("interrupted: the rest is as it was", err=True)
            raise typer.Exit(INTERRUPTED) from None
        self._report(steps)

    async def _queues(self, inspector: Inspector) -> dict[str, int]:
        """The queues meant, with how many tasks in the state they hold."""
        if self.queue is None:
            return {info.name: info.states[self.state] for info in await all_queues(inspector)}
        info = await inspector.queue(self.queue)
        if info is None:
            await exit_unknown_queue(inspector, self.queue)
        return {self.queue: info.states[self.state]}

    async def _count(self, inspector: Inspector) -> tuple[int, int]:
        held = await self._queues(inspector)
        total = sum(held.values())
        if self.filter is None:
            return total, total
        progress, count, scanned = Progress(), 0, 0
        try:
            for name, many in held.items():
                cursor: str | None = None
                while many:
                    page = await inspector.tasks(
                        name, self.state, limit=LIMIT, cursor=cursor, filter=self.filter,
                        newest_first=False,
                    )  # fmt: skip
                    count, scanned, cursor = (
                        count + len(page.tasks),
                        scanned + page.scanned,
                        page.cursor,
                    )
                    progress.tell(f"{scanned:,} of {total:,} looked at, {count:,} found")
                    if cursor is None:
                        break
        finally:
            progress.end()
        return count, total

    async def _steps(self, inspector: Inspector, step: MakeStep, steps: list[Step]) -> None:
        held = await self._queues(inspector)
        progress, total, scanned, done = Progress(), sum(held.values()), 0, 0
        try:
            for name, many in held.items():
                if not many:
                    continue
                async for made in inspector.steps(step, name, self.filter):
                    steps.append(made)
                    scanned, done = scanned + made.scanned, done + made.done
                    progress.tell(f"{scanned:,} of {total:,} looked at, {done:,} {self.verb}")
        finally:
            progress.end()

    def _report(self, steps: list[Step]) -> None:
        names = ("scanned", "done", "duplicate", "too_late")
        sums: dict[str, Any] = {name: sum(getattr(one, name) for one in steps) for name in names}
        if self.as_json:
            print_json(sums)
            return
        print_line(f"{sums['done']:,} of {sums['scanned']:,} {self.state} tasks {self.verb}")
        if sums["duplicate"]:
            print_line(f"{sums['duplicate']:,} stay dead: other tasks have their unique locks")
        if sums["too_late"]:
            print_line(f"{sums['too_late']:,} were changed by somebody else meanwhile")
