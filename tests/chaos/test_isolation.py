"""Tasks whose process is killed from outside start again soon, however long they run."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from qsync.keys import QueueKeys
from qsync.task import Task
from tests.chaos.doing import enqueue
from tests.chaos.evidence import Note, read_notes
from tests.chaos.fleet import Worker, send
from tests.guarantees.conftest import Measured
from tests.support.stores import Store, wait_until

PER_PROCESS = 30
BOUND_S = 20.0
"""Longest time until the last killed task has started again, in seconds. The bound covers 10 s
for suspects, which run one after another, and the startup of two processes. If all tasks ran one
after another, they would take three minutes."""


@pytest.mark.timeout(180)
def test_tasks_of_two_killed_processes_start_again_within_a_bound(
    valkey: Store, prefix: str, tmp_path: Path, measured: Measured
) -> None:
    options = ("-n", "3", "--concurrency", str(PER_PROCESS), "--lease", "5")
    worker = Worker(valkey.url, prefix, tmp_path, *options).start()

    def started() -> list[Note]:
        return [note for note in read_notes(tmp_path / "history") if note.kind == "start"]

    try:
        worker.wait_ready(3)
        first = worker.children()[0]
        ids = enqueue(valkey.url, prefix, [Task("work", {"sleep": 3})] * (3 * PER_PROCESS))
        wait_until(lambda: len(started()) == len(ids))
        send(first, signal.SIGKILL)
        # Another server can run the tasks of the killed server once its own tasks have ended.
        second = wait_until(lambda: next((one.pid for one in started() if one.crashes), None))
        send(second, signal.SIGKILL)
        killed = time.monotonic()
        tasks = QueueKeys(prefix, "default").key("tasks")
        wait_until(lambda: valkey.command("HLEN", tasks) == 0, timeout=90, every=0.1)
        last = max(note.at for note in started())
        measured("suspects", len({note.id for note in started() if note.crashes >= 2}))
        measured("seconds until the last killed task started again", last - killed)
        assert last - killed < BOUND_S
        assert {note.id for note in read_notes(tmp_path / "history") if note.kind == "end"} == {
            *ids
        }
    finally:
        worker.kill()
