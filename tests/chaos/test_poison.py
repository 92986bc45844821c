"""If a task kills each process that runs it, the throughput of other tasks is at most halved."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from qsync.keys import QueueKeys
from qsync.task import Task
from tests.chaos.doing import enqueue, pass_time
from tests.chaos.evidence import read_notes
from tests.chaos.fleet import Worker
from tests.guarantees.conftest import Measured
from tests.support.stores import Store, wait_until

PROCESSES = 4
GAP_S = 3.0
ROUNDS = 3
"""Maximum number of rounds. Only the best round counts, because other load on the machine slows
down the startup of processes."""


@pytest.mark.faults(7)
@pytest.mark.timeout(300)
@pytest.mark.parametrize("poisons", [1, pytest.param(10, marks=pytest.mark.slow)])
def test_other_tasks_keep_half_of_their_throughput_while_processes_are_killed(
    valkey: Store, prefix: str, tmp_path: Path, measured: Measured, poisons: int
) -> None:
    """A poison task arrives every three seconds and becomes dead. Throughput is measured from the
    first poison task on."""
    dead = QueueKeys(prefix, "default").key("dead")
    options = ("-n", str(PROCESSES), "--concurrency", "5", "--lease", "5")
    worker = Worker(valkey.url, prefix, tmp_path, *options).start()

    def ended(begin: float, end: float) -> float:
        """Return the number of tasks per second that ended in this period."""
        notes = read_notes(tmp_path / "history")
        return sum(note.kind == "end" and begin < note.at < end for note in notes) / (end - begin)

    try:
        worker.wait_ready(PROCESSES)
        best = 0.0
        for at in range(1, ROUNDS + 1):
            enqueue(valkey.url, prefix, [Task("work", {"sleep": 0.05})] * (4000 + 1500 * poisons))
            pass_time(0.5)
            begin = time.monotonic()
            pass_time(1.5)
            poisoned = time.monotonic()
            for _ in range(poisons):
                # The poison task has its own fairness key, so that it does not wait behind the
                # other tasks.
                enqueue(valkey.url, prefix, [Task("die", {}, fairness_key="die")])
                pass_time(GAP_S)
            end = time.monotonic()
            share = ended(poisoned, end) / ended(begin, poisoned)
            measured("throughput beside poison tasks, as a share of that without them", share)
            assert valkey.command("ZCARD", QueueKeys(prefix, "default").key("pending")) > 0
            wait_until(lambda at=at: valkey.command("ZCARD", dead) == at * poisons)  # type: ignore[misc]
            best = max(best, share)
            if best >= 0.5:
                break
        assert best >= 0.5
        notes = read_notes(tmp_path / "history")
        killers = {note.id for note in notes if note.crashes} - {
            note.id for note in notes if note.kind == "end"
        }
        assert len(killers) == valkey.command("ZCARD", dead)
        for id in killers:
            assert [note.crashes for note in notes if note.id == id] == [0, 1, 2]
    finally:
        worker.kill()


@pytest.mark.faults(7, 8)
def test_worker_survives_one_poison_task_after_another(
    valkey: Store, prefix: str, tmp_path: Path
) -> None:
    """Processes that die as soon as they are ready, one after another, do not count as failed
    startups."""
    worker = Worker(valkey.url, prefix, tmp_path, "--lease", "5").start()
    try:
        worker.wait_ready()
        poisons = [Task("die", {}) for _ in range(2)]
        ids = enqueue(valkey.url, prefix, [*poisons, Task("work", {})])
        queue = QueueKeys(prefix, "default")
        wait_until(lambda: valkey.command("HLEN", queue.key("tasks")) == 2, timeout=60, every=0.1)
        wait_until(lambda: valkey.command("ZCARD", queue.key("dead")) == 2, timeout=60, every=0.1)
        notes = read_notes(tmp_path / "history")
        for id in ids[:2]:  # at first, all tasks hit by a crash are suspects
            starts = [note.crashes for note in notes if note.id == id]
            assert starts == sorted(set(starts))
            assert starts[-1] == 2
        assert [note.id for note in notes if note.kind == "end"] == ids[2:]
        assert worker.stop() == 0, worker.log()
    finally:
        worker.kill()
