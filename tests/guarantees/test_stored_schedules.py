"""100,000 stored schedules take little memory, cause little load on an idle server, and tick on
time."""

from __future__ import annotations

import asyncio
import struct
import time
from datetime import datetime

import pytest

from qsync import Qsync, TaskInfo
from qsync.broker.stored_schedules import encode_record
from qsync.keys import GlobalKeys, QueueKeys
from qsync.new_task import new_nonce, new_task
from qsync.schedule import Cron
from qsync.task import Task
from tests.guarantees.conftest import Measured
from tests.support.stores import Store

COUNT = 100_000
PER_CALL = 2000


def fill(store: Store, prefix: str, crons: list[Cron]) -> float:
    """Store schedules that use these expressions in turn; return the bytes per schedule."""
    keys = QueueKeys(prefix, "default")
    now_us = int(time.time() * 1_000_000)
    nexts = [cron.next_after(now_us) for cron in crons]
    with store.client() as client:
        before = client.info("memory")["used_memory"]
        pipeline = client.pipeline(transaction=False)
        for number in range(COUNT):
            at = number % len(crons)
            task = new_task(Task("report", {"n": number}), new_nonce())
            record = struct.pack(">Q", now_us) + encode_record(crons[at], "once", task.message)
            name = f"report-{number}"
            pipeline.hset(keys.key("stored_schedules"), name, record)
            pipeline.zadd(keys.key("next_ticks"), {name: nexts[at]})
            if number % PER_CALL == PER_CALL - 1:
                pipeline.execute()
        used = client.info("memory")["used_memory"] - before
        client.hset(GlobalKeys(prefix).schedule_queues, "default", 1)
    return float(used) / COUNT


@pytest.mark.slow
def test_idle_server_with_100_000_schedules_costs_next_to_nothing(
    store: Store, prefix: str, measured: Measured
) -> None:
    crons = [Cron(f"{m} {h} 1 * *", tz="Asia/Tokyo") for m in range(60) for h in range(24)]
    size = fill(store, prefix, crons)
    measured("100,000 stored schedules: bytes per schedule", size)
    assert size < 250
    client = store.client()

    async def main() -> tuple[float, float]:
        async with Qsync(store.url, prefix=prefix).server():
            await asyncio.sleep(3)  # let the server read all schedules
            commands, cpu, began = commands_of(), time.process_time(), time.monotonic()
            await asyncio.sleep(20)  # no schedule ticks in the measured time
            passed = time.monotonic() - began
            return (commands_of() - commands) / passed, (time.process_time() - cpu) / passed

    def commands_of() -> int:
        return int(client.info("stats")["total_commands_processed"])

    commands_per_s, cpu = asyncio.run(main())
    measured("100,000 stored schedules: commands per second of an idle server", commands_per_s)
    measured("100,000 stored schedules: share of a core that an idle server used", cpu)
    assert commands_per_s < 5
    assert cpu < 0.02


@pytest.mark.slow
def test_ticks_of_100_000_schedules_are_on_time(
    store: Store, prefix: str, measured: Measured
) -> None:
    fill(store, prefix, [Cron(f"{s} {m} * * * *") for m in range(60) for s in range(60)])
    app = Qsync(store.url, prefix=prefix)
    late_ms: list[float] = []

    @app.task(name="report")
    async def report(task: TaskInfo, n: int) -> None:
        tick = datetime.fromisoformat(task.id.partition("@")[2])
        late_ms.append((task.enqueued_at - tick).total_seconds() * 1000)

    async def main() -> None:
        async with app.server(), app.server():
            await asyncio.sleep(3)
            late_ms.clear()
            await asyncio.sleep(20)

    asyncio.run(main())
    late_ms.sort()
    p99 = late_ms[int(len(late_ms) * 0.99)]
    measured("100,000 stored schedules: 99th percentile of the ticks' delay, in ms", p99)
    assert len(late_ms) > 400
    assert late_ms[0] >= 0
    assert p99 < 50
