"""What the demo shows while it runs: a live table at a terminal, a line a second elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter, deque
from collections.abc import Sequence
from statistics import fmean
from types import TracebackType
from typing import Final, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from qsync.cli.demo.plan import KINDS
from qsync.cli.demo.scene import Event, Scene
from qsync.state import TaskState

BARS: Final = "▁▂▃▄▅▆▇█"


class Screen:
    """Shows a scene on a console from `async with` to its end."""

    def __init__(self, scene: Scene, console: Console) -> None:
        self._scene = scene
        self._console = console
        self._is_live = console.is_terminal and not console.is_dumb_terminal
        self._told = 0
        self._rates: deque[float] = deque(maxlen=60)
        self._done, self._done_at = 0, time.monotonic()

    async def __aenter__(self) -> Self:
        self._showing = asyncio.create_task(self._show())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._showing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._showing

    async def _show(self) -> None:
        if not self._is_live:
            await self._lines()
            return
        with Live(console=self._console, auto_refresh=False, transient=True) as live:
            try:
                while True:
                    live.update(self._picture(), refresh=True)
                    await asyncio.sleep(0.2)
            finally:
                live.update("", refresh=True)
                self._tell_events()

    # A line a second.

    async def _lines(self) -> None:
        try:
            while True:
                self._tell_events()
                if self._scene.to_hash and self._scene.phase != "checking":
                    self._print(self._line())
                await asyncio.sleep(1)
        finally:
            self._tell_events()

    def _tell_events(self) -> None:
        new = self._scene.events[self._told :]
        if not new:
            return
        self._told += len(new)
        if self._is_live:
            self._console.print(_event_lines(new), highlight=False)
            return
        for event in new:  # in a log each has its line, however long
            self._print(f"{event.at:6.1f} s   {event.text}")

    def _print(self, line: str) -> None:
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def _line(self) -> str:
        scene = self._scene
        at = time.monotonic() - scene.began
        return (
            f"{at:6.1f} s   {scene.hashed:,} of {scene.to_hash:,} hashed, "
            f"{self._rate():,.0f} tasks/s; {self._waiting()}"
        )

    def _waiting(self) -> str:
        totals = Counter[TaskState]()
        for counts in self._scene.counts.values():
            totals.update(counts.states)
        wanted = (TaskState.PENDING, TaskState.ACTIVE, TaskState.SCHEDULED, TaskState.RETRY)
        return ", ".join(f"{state.value} {totals[state]:,}" for state in wanted)

    def _rate(self) -> float:
        """Tasks done a second, since this was last asked."""
        done, now = sum(map(len, self._scene.history.done.values())), time.monotonic()
        rate = (done - self._done) / max(now - self._done_at, 0.001)
        self._done, self._done_at = done, now
        return rate

    # The picture.

    def _picture(self) -> RenderableType:
        scene, height = self._scene, self._console.size.height
        events = scene.events[-max(4, height - len(KINDS) - 10) :]
        return Group(self._head(), "", self._table(), "", self._bar(), "", _event_lines(events))

    def _head(self) -> Text:
        scene = self._scene
        store = scene.store
        version = ".".join(map(str, store.version)) if store and store.version else ""
        pids = " ".join(map(str, scene.servers()))
        return Text.assemble(
            ("qsync demo", "bold"),
            f"  {scene.phase} for {time.monotonic() - scene.began:.0f} s",
            f"   {store.product if store else ''} {version}",
            f"   worker {scene.worker_pid}, servers {pids or 'none'}",
        )

    def _table(self) -> Table:
        table = Table(box=None, padding=(0, 1), pad_edge=False, collapse_padding=True)
        table.add_column("kind", no_wrap=True)
        table.add_column("what it is", style="dim", no_wrap=True)
        for name in ("accepted", "refused", "done", "failed", "rerun"):
            table.add_column(name, justify="right", no_wrap=True, min_width=6)
        table.add_column("otherwise", no_wrap=True)
        scene, history = self._scene, self._scene.history
        ends: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}
        for status in scene.ended.values():
            if status.type in ends and (status.cancelled or status.state is TaskState.DEAD):
                ends[status.type]["cancelled" if status.cancelled else "dead"] += 1
        for kind in KINDS.values():
            accepted = len(scene.ledger.ids[kind.name]) or len(history.done[kind.name])
            done = len(history.done[kind.name])
            table.add_row(
                kind.name, kind.shows, _number(accepted), _number(scene.ledger.refused[kind.name]),
                _number(done, "green" if accepted and done >= accepted else ""),
                _number(len(history.failed[kind.name]), "yellow"),
                _number(history.again[kind.name], "cyan"),
                Text(", ".join(f"{n:,} {end}" for end, n in ends[kind.name].items()), "red"),
            )  # fmt: skip
        return table

    def _bar(self) -> RenderableType:
        scene = self._scene
        self._rates.append(self._rate())
        line = Table.grid(padding=(0, 1))
        line.add_row(
            ProgressBar(total=max(scene.to_hash, 1), completed=scene.hashed, width=30),
            f"{scene.hashed:,}/{scene.to_hash:,}",
            Text(f"{fmean(list(self._rates)[-5:]):6,.0f} tasks/s", "bold"),
            self._spark(),
        )
        return Group(line, Text(f"in the store: {self._waiting()}", "dim"))

    def _spark(self) -> str:
        if not (self._console.encoding or "").lower().startswith("utf"):
            return ""
        most = max(max(self._rates, default=0.0), 1.0)
        return "".join(BARS[min(7, int(8 * rate / most))] for rate in list(self._rates)[-40:])


def _event_lines(events: Sequence[Event]) -> Table:
    lines = Table.grid(padding=(0, 1))
    for event in events:
        lines.add_row(f"{event.at:6.1f} s  ", Text(event.text, "bold red" if event.loud else ""))
    return lines


def _number(value: int, style: str = "") -> Text:
    return Text(f"{value:,}" if value else "", style)
