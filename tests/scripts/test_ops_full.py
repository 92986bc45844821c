"""When the store is out of memory, each call with new tasks or results is refused as a whole.
Everything else continues."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from qsync.broker import ops, views
from qsync.broker.op_values import Completion
from qsync.errors import QueueFull
from tests.scripts.test_ops_twice import ALL, queue
from tests.support.queue_driver import BINARIES, Rig, S

REFUSED = {
    "enqueue", "enqueue one", "enqueue of priorities", "replace waiting", "replace active", "tick",
    "complete and keep", "complete and keep replaced", "put schedule", "put new schedule",
    "tick schedules", "edit scheduled", "edit retry and run", "edit dead", "edit dead and run",
    "report_types", "roll_types", "note runs",
}  # fmt: skip


@pytest.fixture(params=BINARIES)
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    with Rig(request.param) as rig:
        try:
            yield rig
        finally:
            rig.client.config_set("maxmemory", 0)


@pytest.mark.faults(26)
@pytest.mark.parametrize("name", ALL)
def test_full_store_refuses_only_operations_that_add_data(rig: Rig, name: str) -> None:
    call = ALL[name](rig, queue(rig))
    before = rig.dump()
    rig.client.config_set("maxmemory", 1)
    if name in REFUSED:
        with pytest.raises(QueueFull):
            rig.run(call)
        assert rig.dump() == before
    else:
        rig.run(call)


@pytest.mark.parametrize("name", ["complete replaced", "complete replaced without room"])
def test_the_next_run_of_a_replaced_task_is_not_lost(rig: Rig, name: str) -> None:
    call = ALL[name](rig, queue(rig))
    rig.client.config_set("maxmemory", 1)
    rig.run(call)
    assert rig.state("a") == "scheduled"
    assert rig.field("successors", "a") is None


def test_task_can_be_read_in_a_full_store(rig: Rig) -> None:
    queue(rig)
    rig.client.config_set("maxmemory", 1)
    shown = rig.run(views.get_tasks(rig.keys, ["a", "p", "s", "r", "c", "d"]))
    assert all(shown)


@pytest.mark.faults(26, 61)
def test_batch_refused_for_its_result_is_accepted_without_it(rig: Rig) -> None:
    a, b = queue(rig)
    rig.client.config_set("maxmemory", 1)
    tasks = [Completion(*a), Completion(*b, S, b"result")]
    with pytest.raises(QueueFull):
        rig.run(ops.complete(rig.keys, tasks, now_us=rig.now))
    assert [rig.state(one.id) for one in (a, b)] == ["active", "active"]
    assert rig.run(ops.complete_without_room(rig.keys, tasks, now_us=rig.now)) == ["ok", "ok"]
    assert [rig.state(one.id) for one in (a, b)] == [None, "completed"]
