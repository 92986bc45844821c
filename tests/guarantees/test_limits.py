"""Each task that waits for a limit takes some memory, but does not slow down other tasks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from qsync.broker import limit_ops
from qsync.limit import LimitRule
from qsync.new_task import new_id
from tests.support.limits import with_limits
from tests.support.queue_driver import Rig
from tests.support.stores import available, wait_until

WAITING = 50_000
MOST_BYTES = 105
"""Maximum memory that a limit whose name has 11 characters adds to a waiting task, in bytes. The
actual amount is about 95 bytes for an entry among the waiters and the limit in the message."""


@pytest.fixture
def rig() -> Iterator[Rig]:
    if not available("valkey"):
        pytest.skip("needs valkey")
    with Rig("valkey") as rig:
        yield rig


def fill(rig: Rig, count: int, *limits: str) -> float:
    """Enqueue `count` tasks; return the bytes that each takes in the store."""
    rig.reset()
    wait_until(lambda: rig.client.info("memory")["lazyfree_pending_objects"] == 0)
    rules = {"customer": LimitRule(concurrency=1)}
    rig.run(limit_ops.put_limit_rules(rig.keys, rules, now_us=rig.now))
    before = rig.client.info("memory")["used_memory"]
    for _ in range(0, count, 250):
        rig.send(
            [with_limits(task, *limits) for task in rig.tasks(*[new_id() for _ in range(250)])]
        )
    return float(rig.client.info("memory")["used_memory"] - before) / count


def commands_of_a_fetch(rig: Rig) -> dict[str, int]:
    """Return how often each command runs during a fetch that leases one task with another key."""
    rig.enqueue("first", "second")
    assert len(rig.fetch(1).ids) == 1  # this task holds the limit
    assert rig.fetch(1).ids == ["first"]
    rig.client.config_resetstat()
    assert rig.fetch(1).ids == ["second"]
    stats = rig.client.info("commandstats")
    return {name: stats[name]["calls"] for name in stats if "|" not in name}


def test_waiting_for_a_limit_takes_little_memory(rig: Rig) -> None:
    plain = fill(rig, WAITING)
    assert fill(rig, WAITING, "customer:42") - plain < MOST_BYTES


def test_fetch_of_other_tasks_costs_the_same_however_many_wait(rig: Rig) -> None:
    fill(rig, 250, "customer:42")
    few = commands_of_a_fetch(rig)
    fill(rig, WAITING, "customer:42")
    assert commands_of_a_fetch(rig) == few
