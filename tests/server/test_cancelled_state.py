"""A cancelled task that is retained is never shown as completed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator

import pytest
from typer.testing import CliRunner

from qsync import Mux, Qsync, Task, TaskInfo, TaskState
from qsync.broker import views
from qsync.cli.main import app as command
from qsync.contrib.prometheus import store_metrics
from qsync.errors import InvalidTask
from qsync.inspector import Inspector
from qsync.inspector.base import check_state
from tests.support.queue_driver import BINARIES, Rig, S
from tests.support.server import bench
from tests.support.stores import Store
from tests.web.test_web_actions import visitor


@pytest.fixture(params=BINARIES)
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    with Rig(request.param) as rig:
        yield rig


def kept(rig: Rig) -> None:
    """Retain one completed and two cancelled tasks, and leave a task running whose cancel was
    requested."""
    rig.enqueue("done", retention=60)
    rig.complete(*rig.lease(), retention_us=60 * S, result=b"r")
    rig.enqueue("waited", "ran", "runs", retention=60)
    held = {one.id: one for one in rig.lease()}
    rig.hand_back(held["waited"])
    for id in ("waited", "ran", "runs"):
        rig.cancel(id, retention_us=60 * S)
    rig.end_cancelled(held["ran"])


def test_status_says_cancelled(rig: Rig) -> None:
    kept(rig)
    found = {id: rig.status(id) for id in ("done", "waited", "ran", "runs")}
    assert {id: one and one.state for id, one in found.items()} == {
        "done": TaskState.COMPLETED, "waited": TaskState.CANCELLED, "ran": TaskState.CANCELLED,
        "runs": TaskState.ACTIVE,
    }  # fmt: skip


@pytest.mark.parametrize("view", ["counts", "overview"])
def test_counts_tell_cancelled_from_completed(rig: Rig, view: str) -> None:
    kept(rig)
    found = rig.run(views.counts(rig.keys) if view == "counts" else views.overview(rig.keys))
    assert found.states == {
        **dict.fromkeys(TaskState, 0), TaskState.COMPLETED: 1, TaskState.CANCELLED: 2,
        TaskState.ACTIVE: 1,
    }  # fmt: skip
    assert (found.stats["completed"], found.stats["cancelled"]) == (1, 2)


def test_clients_inspector_command_line_and_metrics_show_cancelled_tasks(
    valkey: Store, prefix: str
) -> None:
    app = Qsync(valkey.url, prefix=prefix)
    mux = Mux()

    @mux.handle("t")
    async def handler(task: TaskInfo) -> None: ...

    async def main() -> None:
        async with bench(valkey.url, prefix) as b:
            gone = await b.client.enqueue(Task("t", id="gone", delay=60, retention=600))
            done = await b.client.enqueue(Task("t", id="done", retention=600))
            assert await gone.cancel()
            async with b.server(mux):
                await done.result(10)
            assert (await gone.info()).state is TaskState.CANCELLED
            assert (await done.info()).state is TaskState.COMPLETED
        async with app.inspector() as inspector:
            await look(inspector)

    async def look(inspector: Inspector) -> None:
        for state, id in (("cancelled", "gone"), ("completed", "done")):
            page = await inspector.tasks("default", state)
            assert ([row.id for row in page.tasks], page.total) == ([id], 1)
            assert page.tasks[0].state == state
            assert page.tasks[0].kept_until is not None
            told = await inspector.explain(id)
            assert (told.state, told.reason) == (state, state)
            detail = await inspector.task(id)
            assert detail is not None
            assert detail.row.state == state
        [info] = (await inspector.overview()).queues
        assert (info.states[TaskState.COMPLETED], info.states[TaskState.CANCELLED]) == (1, 1)
        seen: dict[tuple[str, str], float] = {}
        for metric in store_metrics(await inspector.overview()):
            for sample in metric.samples:
                seen[sample.name, sample.labels.get("state", "")] = sample.value
        assert seen["qsync_queue_tasks", "cancelled"] == seen["qsync_queue_tasks", "completed"] == 1
        with pytest.raises(InvalidTask, match="purge 'completed'"):
            await inspector.purge("default", "cancelled")
        assert (await inspector.delete("gone", state="completed")).outcome == "too_late"
        assert (await inspector.delete("gone", state="cancelled")).outcome == "done"

    asyncio.run(main())


def test_command_line_lists_cancelled_tasks(valkey: Store, prefix: str) -> None:
    with Qsync(valkey.url, prefix=prefix).client() as client:
        client.enqueue(Task("t", id="gone", delay=60, retention=600)).cancel()
    where = ["--url", valkey.url, "--prefix", prefix]
    runner = CliRunner()
    shown = runner.invoke(command, ["task", "show", "gone", *where])
    assert "cancelled" in shown.stdout
    assert "completed" not in shown.stdout
    listed = runner.invoke(command, ["task", "list", "--state", "cancelled", "--json", *where])
    assert listed.exit_code == 0, listed.output
    assert "gone" in listed.stdout
    other = runner.invoke(command, ["task", "list", "--state", "completed", "--json", *where])
    assert "gone" not in other.stdout
    assert json.loads(listed.stdout)


def test_purge_of_completed_tasks_counts_the_cancelled_tasks_it_deletes(
    valkey: Store, prefix: str
) -> None:
    with Qsync(valkey.url, prefix=prefix).client() as client:
        client.enqueue(Task("t", id="gone", delay=60, retention=600)).cancel()
    purge = ["queue", "purge", "default", "--state", "completed", "--url", valkey.url]
    purge += ["--prefix", prefix]
    runner = CliRunner()
    counted = runner.invoke(command, [*purge, "--dry-run"])
    assert "1 completed and cancelled task of queue default would be deleted" in counted.stdout
    done = runner.invoke(command, [*purge, "--yes"])
    assert "1 completed and cancelled task of queue default deleted" in done.stdout
    assert "0 completed task" in runner.invoke(command, [*purge, "--yes"]).stdout


async def test_page_of_a_queue_counts_cancelled_tasks_for_a_purge(
    valkey: Store, prefix: str
) -> None:
    async with visitor(valkey, prefix) as web:
        await web.bed.enqueue(Task("t", id="gone", delay=60, retention=600))
        assert (await web.bed.inspector.cancel("gone")).ok
        page = (await web.client.get("/queue?queue=default")).text
        assert "completed and cancelled (1)" in page
        asked = await web.send("/queue/purge", queue="default", state="completed")
        assert "This deletes 1 completed and cancelled task of queue default." in asked
        await web.press(asked, "Delete 1 task")
        assert (await web.queue()).states[TaskState.CANCELLED] == 0


def test_cancelled_is_a_known_state() -> None:
    assert check_state("cancelled") is TaskState.CANCELLED
