"""The outcomes of the demo's tasks, its progress output and its final account."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import msgspec
from rich.console import Console
from rich.status import Status
from rich.table import Table
from rich.text import Text

from qsync.client import AsyncHandle
from qsync.formatting import plural
from qsync.inspector import TaskRow
from qsync.state import UNFINISHED, TaskState
from qsync.task import Task

Handles = Sequence[AsyncHandle[Any]]


class End(StrEnum):
    """How an accepted task ended; no task may be `left` or `lost`."""

    DONE = "done"
    DEAD = "dead"
    EXPIRED = "expired"
    CANCELLED = "cancelled"
    LEFT = "left"
    LOST = "lost"


class DemoKind(NamedTuple):
    """The tasks of one type: what the account proves about them, and how they should end."""

    proof: str
    end: End = End.DONE


KINDS: Final = {
    "hash": DemoKind("all digests are right"),
    "thread": DemoKind("all digests are right"),
    "process": DemoKind("all digests are right"),
    "tenant": DemoKind("all digests of both tenants are right"),
    "parent": DemoKind("each enqueued ten children"),
    "child": DemoKind("all digests are right"),
    "typed": DemoKind("results match plain calls"),
    "slow": DemoKind("interrupted tasks ran again"),
    "flaky": DemoKind("each succeeded on attempt 3"),
    "hopeless": DemoKind("each died after 3 attempts", End.DEAD),
    "scheduled": DemoKind("none started early"),
    "unique": DemoKind("each name was accepted once"),
    "late": DemoKind("none started", End.EXPIRED),
    "cancel": DemoKind("all were stopped", End.CANCELLED),
    "tick": DemoKind("one tick for each second"),
    "poison": DemoKind("died after 3 crashes", End.DEAD),
}


class ServerNotes:
    """What the servers have recorded so far about the tasks. Times are in seconds."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._offsets: Counter[Path] = Counter()
        self.kinds: dict[str, str] = {}
        """Kinds of the tasks that have started, by task id."""
        self.starts: dict[str, list[float]] = defaultdict(list)
        """Start times of each task, by task id."""
        self.done: dict[str, dict[str, set[str]]] = defaultdict(dict)
        """Digests that completed tasks returned, by kind and task id."""
        self.failed: dict[str, set[tuple[str, int]]] = defaultdict(set)
        """Pairs of task id and attempt for the attempts that failed, by kind."""
        self.running: dict[int, set[str]] = defaultdict(set)
        """Ids of the tasks that are running, by process id."""
        self.events: int = 0
        """Number of starts and ends of tasks, without those of the kind `tick`."""

    def poll(self) -> None:
        """Read the lines that the servers have written since the last call."""
        for path in sorted(self._folder.glob("history-*")):
            with path.open("rb") as file:
                file.seek(self._offsets[path])
                lines, newline, _ = file.read().rpartition(b"\n")
            if newline:
                self._offsets[path] += len(lines) + 1
                for line in lines.decode().split("\n"):
                    self._read(int(path.name.partition("-")[2]), *line.split(" "))

    def _read(self, pid: int, event: str, ns: str, id: str, *facts: str) -> None:
        if event == "start":
            self.kinds[id] = facts[0]
            self.starts[id].append(int(ns) / 1e9)
            self.running[pid].add(id)
        else:
            self.running[pid].discard(id)
            if event == "done":
                self.done[self.kinds[id]].setdefault(id, set()).add(facts[1])
            elif event == "failed":
                self.failed[self.kinds[id]].add((id, int(facts[0])))
        self.events += self.kinds[id] != "tick"


@dataclass
class Ledger:
    """Everything that the client, the servers and the store report about a run."""

    history: ServerNotes
    offered: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    ids: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    """Ids of the accepted tasks, by kind."""
    blocks: dict[str, int] = field(default_factory=dict)
    """Offset of the block that a task hashes, by task id."""
    due: dict[str, float] = field(default_factory=dict)
    """Earliest time at which a task may start, by task id."""
    wrong: Counter[str] = field(default_factory=Counter)
    """Number of wrong results, by kind."""
    killed_at: float = 0.0
    interrupted: set[str] = field(default_factory=set)
    """Ids of the tasks that the killed server was running."""
    stored: dict[str, TaskRow] = field(default_factory=dict)
    """Tasks that are in the store at the end, by task id."""
    counters: Counter[str] = field(default_factory=Counter)
    """The store's own counters."""
    digests: dict[int, str] = field(default_factory=dict)
    """The correct digests, by offset of the block."""

    def record(self, tasks: Sequence[Task], handles: Handles, blocks: Sequence[int]) -> list[str]:
        """Record how the store answered the enqueues; return the ids."""
        for task, handle in zip(tasks, handles, strict=True):
            self.offered[task.type] += 1
            if handle.created:
                self.ids[task.type].append(handle.id)
            else:
                self.refused[task.type] += 1
        ids = [handle.id for handle in handles]
        self.blocks.update(zip(ids, blocks, strict=False))
        return ids

    def restarts(self) -> list[float]:
        """Return the times at which interrupted tasks started again."""
        starts, after = self.history.starts, self.killed_at
        later = ([started for started in starts[id] if started > after] for id in self.interrupted)
        return [min(times) for times in later if times]

    def end_of(self, kind: str, id: str) -> End:
        """Return how a task ended, according to the store and the records of the servers."""
        row = self.stored.get(id)
        if row is not None and row.state in UNFINISHED:
            return End.LEFT
        if row is not None and row.state is TaskState.DEAD:
            return End.EXPIRED if (row.error or "").startswith("deadline") else End.DEAD
        if row is not None and row.cancelled:
            return End.CANCELLED
        return End.DONE if id in self.history.done[kind] else End.LOST

    def seen_ids(self, kind: str) -> set[str]:
        """Return the ids of the tasks of one kind that have started or are in the store."""
        started = {id for id, name in self.history.kinds.items() if name == kind}
        return started | {id for id, row in self.stored.items() if row.type == kind}


class KindAccount(msgspec.Struct):
    """The account of one kind of task."""

    kind: str
    offered: int
    refused: int
    accepted: int
    ends: dict[End, int]
    ok: bool
    finding: str


class CheckResult(msgspec.Struct):
    """The result of a check that covers the tasks of all kinds."""

    ok: bool
    text: str


class Summary(msgspec.Struct):
    """The account; `ok` if every task is accounted for and every check holds."""

    ok: bool
    kinds: list[KindAccount]
    findings: list[CheckResult]


def account(ledger: Ledger) -> Summary:
    """Compute the account from everything that was reported."""
    rows = [_row(ledger, kind) for kind in KINDS]
    ends = Counter({end: sum(row.ends[end] for row in rows) for end in End})
    parts = " + ".join(f"{ends[end]:,} {end}" for end in End if end not in (End.LEFT, End.LOST))
    text = f"{ends.total():,} accepted = {parts}; {ledger.refused.total():,} duplicates refused"
    text += f"; {ends[End.LEFT]} left in the store; {ends[End.LOST]} lost"
    total = CheckResult(not ends[End.LEFT] and not ends[End.LOST], text)
    findings = [total, _check_recovery(ledger), _check_counters(ledger, ends)]
    ok = all(row.ok for row in rows) and all(finding.ok for finding in findings)
    return Summary(ok, rows, findings)


def _row(ledger: Ledger, kind: str) -> KindAccount:
    seen, (proof, expected) = ledger.seen_ids(kind), KINDS[kind]
    if kind == "tick":  # servers enqueue ticks
        ledger.ids[kind], ledger.offered[kind] = sorted(seen), len(seen)
    ids, offered, refused = ledger.ids[kind], ledger.offered[kind], ledger.refused[kind]
    ends = Counter(ledger.end_of(kind, id) for id in ids)
    problem = _problem(ledger, kind)
    if strangers := seen - set(ids):
        problem = f"never enqueued: {plural(len(strangers), 'task')}"
    elif len(set(ids)) != len(ids):
        problem = "an id was accepted twice"
    elif offered != refused + len(ids):
        problem = "some tasks were neither accepted nor refused"
    elif ends.total() != ends[expected]:
        problem = ", ".join(f"{n:,} {end}" for end, n in ends.items() if end is not expected)
    counts = {end: ends[end] for end in End}
    return KindAccount(kind, offered, refused, len(ids), counts, not problem, problem or proof)


def _problem(ledger: Ledger, kind: str) -> str:
    """Return what is wrong with the tasks of a kind, apart from how they ended; "" if nothing."""
    history, ids = ledger.history, ledger.ids[kind]
    wrong, problem = ledger.wrong[kind], "failed in the client"
    match kind:
        case "hash" | "thread" | "process" | "tenant" | "child":
            done, digests, problem = history.done[kind], ledger.digests, "digests are wrong"
            wrong = sum(done[id] != {digests[ledger.blocks[id]]} for id in ids if id in done)
        case "flaky" | "hopeless":
            attempts, problem = (1, 2) if kind == "flaky" else (1, 2, 3), "unexpected attempts"
            wrong = len(history.failed[kind] ^ {(id, number) for id in ids for number in attempts})
        case "scheduled":
            starts, problem = history.starts, "started early"
            wrong = sum(starts[id][0] < ledger.due[id] for id in ids if id in starts)
        case "late":
            wrong, problem = sum(id in history.starts for id in ids), "started"
        case "tick":
            times = [datetime.fromisoformat(id.rpartition("@")[2]) for id in ids]
            span = round((max(times) - min(times)).total_seconds()) + 1 if times else 1
            wrong, problem = abs(span - len(times)), "seconds without a tick"
        case "poison":
            runs = [len(history.starts[id]) for id in ids]
            crashes = [ledger.stored[id].crashes for id in ids if id in ledger.stored]
            wrong, problem = int((runs, crashes) != ([3], [3])), "did not crash three times"
    return f"{wrong:,} {problem}" if wrong else ""


def _check_recovery(ledger: Ledger) -> CheckResult:
    total, restarts = len(ledger.interrupted), ledger.restarts()
    seconds = max(restarts, default=ledger.killed_at) - ledger.killed_at
    text = f"{len(restarts)} of them started again within {seconds:.2f} s"
    return CheckResult(0 < total == len(restarts), f"kill -9 interrupted {total} tasks; {text}")


def _check_counters(ledger: Ledger, ends: Counter[End]) -> CheckResult:
    """Compare the store's own counters with the records of the client and the servers."""
    failed = sum(map(len, ledger.history.failed.values()))
    expected = {
        "enqueued": ends.total(), "completed": ends[End.DONE], "failed": failed,
        "retried": failed - len(ledger.ids["hopeless"]),
        "dead": ends[End.DEAD] + ends[End.EXPIRED], "cancelled": ends[End.CANCELLED],
    }  # fmt: skip
    counted = {name: ledger.counters[name] for name in expected}
    text = ", ".join(f"{count:,} {name}" for name, count in counted.items())
    if counted != expected:
        text += f"; expected: {', '.join(f'{n:,} {name}' for name, n in expected.items())}"
    return CheckResult(counted == expected, f"the store counted {text}")


NEXT_STEPS: Final = """\
What next: save this as tasks.py,

    from qsync import Qsync

    app = Qsync()

    @app.task()
    def greet(name: str) -> None:
        print("Hello,", name)

serve it in one terminal, and enqueue a task in another:

    export QSYNC_URL=embedded://     # in both; or redis://localhost:6379
    qsync worker tasks:app
    python -c 'import tasks; tasks.greet.enqueue_sync("world")'"""


class DemoError(Exception):
    """Raised when the demo cannot continue; the message says why."""


class Screen:
    """Shows progress: one line updated in place on a terminal, or one line per second elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._began = self._shown_at = time.monotonic()
        self.status: Status = console.status("starting")

    def tell(self, text: str, *, loud: bool = False) -> None:
        """Print a line about an event."""
        line = Text(f"{time.monotonic() - self._began:6.1f} s   {text}", "bold red" if loud else "")
        self._console.print(line, soft_wrap=True)

    def show(self, line: str) -> None:
        """Show the progress of the tasks."""
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
        verdict = Text("\nSomething is wrong: see the lines marked WRONG.\n", "bold red")
    console.print(verdict, NEXT_STEPS, highlight=False, markup=False, soft_wrap=True, sep="\n")
