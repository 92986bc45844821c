"""A server that has lost its lease changes nothing, however late it resumes."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from qsync.keys import QUEUE_KEYS, QueueKeys
from qsync.task import Task
from tests.guarantees.conftest import Launch, Measured
from tests.support.processes import History, ServerProcess, task
from tests.support.server import bench, left_over
from tests.support.stores import Store, wait_until

PAUSES = 2
LONG = 10


def dump(store: Store, prefix: str) -> dict[str, Any]:
    """Return the contents of a queue, without the fields that upkeep and renewals change, and
    without the `lost` counters."""
    base = QueueKeys(prefix, "default").base
    found: dict[str, Any] = {}
    with store.client() as client:
        for name, (type, _) in QUEUE_KEYS.items():
            key = f"{base}:{name}"
            if name in ("fetches", "wake"):
                continue
            if name == "active":
                found[name] = sorted(client.zrange(key, 0, -1))
            elif type == "zset":
                found[name] = dict(client.zrange(key, 0, -1, withscores=True))
            else:
                found[name] = client.hgetall(key)
    for field in (b"swept", b"cursor", b"fetches_cursor", b"calls_cursor", b"seen"):
        found["meta"].pop(field, None)
    lost = [field for field in found["stats"] if field.partition(b":")[0] == b"lost"]
    for field in lost:
        del found["stats"][field]
    return found


def counter(store: Store, prefix: str, name: str) -> int:
    with store.client() as client:
        return int(client.hget(f"{QueueKeys(prefix, 'default').base}:stats", name) or 0)


def zombie_tasks() -> dict[str, Task]:
    """Return tasks by id. On the zombie, all tasks should end while it is paused; on the other
    server, some run longer."""
    zombie, live = {"zombie": 0.5}, {"zombie": 0.5, "live": 4.0}
    kept: dict[str, Any] = {"retention": 600}
    tasks: dict[str, Task] = {}
    for type in ("work", "work-in-thread"):
        tasks |= {
            f"gone/{type}": task(type, sleep_at=zombie),
            f"kept/{type}": task(type, sleep_at=zombie, **kept),
            f"fails/{type}": task(type, sleep_at=zombie, fail_at=["zombie"], **kept),
            f"dead/{type}": task(type, sleep_at=zombie, fail_at=["live"], retry=0, **kept),
            f"waits/{type}": task(
                type, sleep_at=zombie, fail_at=["live"], retry=1, retry_delay=600
            ),
            f"runs/{type}": task(type, sleep_at=live, progress_at=["zombie"], **kept),
            f"runs-fails/{type}": task(type, sleep_at=live, fail_at=["zombie"], **kept),
        }
    tasks |= {f"long/{n}": task(sleep_at={"zombie": 600.0}) for n in range(LONG)}
    tasks |= {
        f"long-runs/{n}": task(sleep_at={"zombie": 600.0, "live": 4.0}, **kept) for n in range(3)
    }
    return {id: one.replace(id=id) for id, one in tasks.items()}


@pytest.mark.faults(3)
@pytest.mark.guarantee(3)
def test_a_zombie_changes_nothing(
    valkey: Store, prefix: str, launch: Launch, history: History, measured: Measured
) -> None:
    tasks = zombie_tasks()
    zombie = launch(valkey.url, server_id="zombie")

    async def enqueue() -> None:
        async with bench(valkey.url, prefix) as b:
            await b.client.enqueue_many(tasks.values())

    asyncio.run(enqueue())
    history.wait("start", len(tasks), pid=zombie.pid)
    zombie.pause()
    live = launch(valkey.url, server_id="live")
    history.wait("start", len(tasks), pid=live.pid)
    over = {id for id in tasks if "runs" not in id}
    wait_until(lambda: over <= history.ids("end") | history.ids("fail"))
    wait_until(lambda: counter(valkey, prefix, "completed") == len(over) - 4)
    before = dump(valkey, prefix)
    assert len(before["active"]) == len(tasks) - len(over)

    zombie.resume()
    stopped = [id for id in tasks if id.startswith("long")]
    history.wait("cancelled", len(stopped), pid=zombie.pid)
    zombie.terminate()
    assert zombie.wait() == 0
    # The zombie's type reports count the lost leases. Type reports describe the server itself and
    # change no task.
    after = dump(valkey, prefix)
    assert after | {"type_reports": {}} == before | {"type_reports": {}}
    ends = history.of("end", pid=zombie.pid)
    fails = history.of("fail", pid=zombie.pid)
    measured("zombie: completions and failures that the store refused", len(ends) + len(fails))
    measured("zombie: tasks counted as lost", counter(valkey, prefix, "lost"))
    assert len(ends) + len(fails) >= 10

    async def check_results() -> None:
        async with bench(valkey.url, prefix) as b:
            for id, one in tasks.items():
                if one.retention is not None and not id.startswith("dead"):
                    assert await b.client.handle(id).result(timeout=10) == "live"
            assert (await b.client.handle("runs/work").info()).progress is None

    asyncio.run(check_results())


@pytest.mark.faults(3)
def test_the_handlers_of_a_zombie_are_cancelled_within_100_ms(
    valkey: Store, prefix: str, launch: Launch, history: History, measured: Measured
) -> None:
    zombie = launch(valkey.url, server_id="zombie")
    live: ServerProcess | None = None
    delays: list[float] = []
    for at in range(1, PAUSES + 1):

        async def enqueue() -> None:
            async with bench(valkey.url, prefix) as b:
                await b.client.enqueue_many([task(sleep_at={"zombie": 600.0}) for _ in range(LONG)])

        if live is not None:
            live.kill()
        asyncio.run(enqueue())
        history.wait("start", at * LONG, pid=zombie.pid)
        zombie.pause()
        live = launch(valkey.url)
        history.wait("end", at * LONG)
        resumed_at = time.monotonic()
        zombie.resume()
        cancelled = history.wait("cancelled", at * LONG, pid=zombie.pid)
        delays += [event.at - resumed_at for event in cancelled[-LONG:]]
    measured("zombie: longest time until a handler was cancelled, in seconds", max(delays))
    assert max(delays) <= 0.1
    assert left_over(valkey.client(), prefix) == {}
