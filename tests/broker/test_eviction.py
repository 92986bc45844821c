"""If a store evicts keys when memory is full, the volatile policies never evict a task."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from qsync import Mux, Qsync, QueueFull, TaskInfo
from qsync.task import Task
from tests.support.stores import Store, available, wait_until_async
from tests.worker.test_worker import Worker


@pytest.mark.faults(27)
@pytest.mark.parametrize("binary", ["valkey", "redis"])
@pytest.mark.parametrize("policy", ["volatile-lru", "volatile-ttl"])
def test_a_full_store_with_a_volatile_policy_keeps_all_tasks(
    binary: str, policy: str, prefix: str
) -> None:
    if not available(binary):  # type: ignore[arg-type]
        pytest.skip(f"needs {binary}")

    async def main(store: Store) -> None:
        done: set[str] = set()
        mux = Mux()

        @mux.handle("t")
        async def handler(task: TaskInfo) -> None:
            done.add(task.id)

        app = Qsync(store.url, prefix=prefix, mux=mux)
        async with app, app.async_client() as client:
            tasks = [Task("t", b"x" * 500, id=f"t{number}") for number in range(2000)]
            await client.enqueue_many(tasks)
            with store.client() as plain:
                for number in range(100):
                    plain.set(f"cache:{number}", "y" * 100, ex=600)
                plain.config_set("maxmemory", int(plain.info("memory")["used_memory"]) - 1)
                with pytest.raises(QueueFull):
                    await client.enqueue(Task("t", b"x" * 100_000))
                assert plain.info("stats")["evicted_keys"] >= 100
            async with app.server():
                await wait_until_async(lambda: len(done) == len(tasks), timeout=30)

    with Store(binary, config={"maxmemory-policy": policy}) as store:  # type: ignore[arg-type]
        asyncio.run(main(store))


def test_only_server_records_have_a_ttl(store: Store, prefix: str) -> None:
    """The store holds tasks in each state, a result, a lock, a fairness key, a schedule, a live
    server and an order."""

    async def main() -> dict[bytes, int]:
        app = Qsync(store.url, prefix=prefix)
        held = asyncio.Event()

        @app.task(name="ok", retention=600)
        async def ok() -> int:
            return 1

        @app.task(name="bad", retry=0)
        async def bad() -> None:
            raise ValueError

        @app.task(name="again", retry=1, retry_delay=600)
        async def again() -> None:
            raise ValueError

        @app.task(name="long", unique=True, fairness_key="a")
        async def long() -> None:
            await held.wait()

        app.periodic(every=0.1)(ok)
        async with app, app.server(), app.inspector() as inspector:
            await long.enqueue()
            await ok.options(delay=600).enqueue()
            await ok.options(fairness_key="b").enqueue()
            await bad.enqueue()
            await again.enqueue()

            async def settled() -> bool:
                queue = await inspector.queue("default")
                wanted = ("completed", "dead", "retry", "scheduled", "active")
                return queue is not None and all(queue.states[state] for state in wanted)

            await wait_until_async(settled, timeout=30)
            [server] = await inspector.servers()
            await inspector.quiet(server.id)
            with store.client() as client:
                found = {key: client.ttl(key) for key in client.scan_iter("*")}
            held.set()
        return found

    found = asyncio.run(main())
    assert len(found) > 10
    for key, ttl in found.items():
        of_a_server = b":server:" in key or b":inbox:" in key
        assert of_a_server or ttl == -1, f"{key!r} would be deleted"


def test_worker_option_allows_any_eviction_policy(
    tmp_path: Path, own_store: Store, prefix: str
) -> None:
    own_store.command("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    with Worker(tmp_path, own_store.url, "--allow-eviction") as worker:
        worker.wait_ready(1)
        assert worker.process.poll() is None
