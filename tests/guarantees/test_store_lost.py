"""If the store comes back empty, servers log the loss once, drop the lost tasks, and continue."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from typing import Any

import pytest

from qsync.broker import views
from qsync.keys import GlobalKeys
from qsync.mux import Mux
from qsync.server.server import Server
from qsync.task import Task, TaskInfo
from tests.support.server import bench, left_over, until
from tests.support.stores import Store, available, wait_until_async

SOON_S = 2.0
TASKS = 8


@pytest.fixture
def forgetful() -> Iterator[Store]:
    """Yield a store that loses all data when it restarts."""
    if not available("valkey"):
        pytest.skip("there is no Valkey")
    with Store("valkey") as store:
        yield store


def lose_all(store: Store, how: str) -> None:
    if how == "flushed":
        store.command("FLUSHALL")
    else:
        store.restart()


@pytest.mark.faults(18)
@pytest.mark.parametrize("how", ["flushed", "restarted"])
def test_servers_survive_the_loss_of_all_data(
    forgetful: Store, prefix: str, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Running handlers are stopped, or their results are discarded. Both servers run new tasks
    immediately."""
    caplog.set_level(logging.WARNING, logger="qsync")

    async def main() -> list[Server]:
        mux, started, quick = Mux(), list[str](), set[str]()
        stopped: list[str] = []
        let_go = asyncio.Event()

        @mux.handle("long")
        async def long(task: TaskInfo) -> None:
            started.append(task.id)
            try:
                await let_go.wait()
            except asyncio.CancelledError:
                stopped.append(task.id)
                raise

        @mux.handle("deaf")
        async def deaf(task: TaskInfo) -> None:
            started.append(task.id)
            while not let_go.is_set():
                try:
                    await let_go.wait()
                except asyncio.CancelledError:
                    stopped.append(task.id)

        @mux.handle("quick")
        async def quickly(task: TaskInfo) -> None:
            quick.add(task.id)

        options: dict[str, Any] = {"lease": 30.0, "concurrency": TASKS}
        async with (
            bench(forgetful.url, prefix) as b,
            b.server(mux, **options) as one,
            b.server(mux, **options) as two,
        ):

            async def known() -> bool:
                names = GlobalKeys(prefix)
                _, live = await b.broker.run(views.servers(names))
                records = [await b.broker.run(views.server_info(names, id)) for id in live]
                return set(live) == {one.id, two.id} and all(records)

            await wait_until_async(known)
            await b.client.enqueue_many(
                [Task("deaf" if n % 2 else "long", retry=0) for n in range(TASKS)]
            )
            await until(lambda: len(started) == TASKS)
            await asyncio.to_thread(lose_all, forgetful, how)
            lost_at = time.monotonic()
            handles = await b.client.enqueue_many([Task("quick") for _ in range(TASKS)])
            await until(lambda: quick == {handle.id for handle in handles})
            assert time.monotonic() - lost_at < SOON_S
            await wait_until_async(known)
            assert time.monotonic() - lost_at < SOON_S
            await until(lambda: len(set(stopped)) == TASKS)
            let_go.set()
            for handle in handles:
                await b.gone(handle.id)
            await until(lambda: one.lost_leases + two.lost_leases == TASKS)
            return [one, two]

    servers = asyncio.run(main())
    assert not any(server.broken for server in servers)
    errors = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert len(errors) == len(servers)
    assert all(error.startswith("store lost: the generation of queue default") for error in errors)
    with forgetful.client() as client:
        assert left_over(client, prefix) == {}
        stats = client.hgetall(f"{{{prefix}:default}}:stats")
    assert int(stats[b"completed"]) == int(stats[b"enqueued"]) == TASKS
    assert not {b"failed", b"dead", b"retried", b"crashed", b"lost"} & set(stats)


def scripts_run(client: Any) -> int:
    """Return how many scripts the store has run."""
    return int(client.info("commandstats")["cmdstat_evalsha"]["calls"])


@pytest.mark.faults(18)
def test_older_state_of_the_same_generation_is_not_a_loss(
    own_store: Store, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    """After a failover that loses some writes, the queue has the same identity, and running tasks
    continue."""
    caplog.set_level(logging.ERROR, logger="qsync")

    async def main() -> int:
        mux, ended = Mux(), list[str]()
        let_go = asyncio.Event()

        @mux.handle("long")
        async def long(task: TaskInfo) -> None:
            await let_go.wait()
            ended.append(task.id)

        async with bench(own_store.url, prefix) as b, b.server(mux, lease=30.0) as server:
            first = await b.client.enqueue(Task("long"))
            await b.reaches(first.id, "active")
            with own_store.client() as client:
                base = b.keys().base
                before = {key: client.dump(key) for key in client.keys(f"{base}:*")}
                second = await b.client.enqueue(Task("long"))
                await b.reaches(second.id, "active")
                with client.pipeline(transaction=True) as at_once:
                    at_once.delete(*client.keys(f"{base}:*"), *before)
                    for key, data in before.items():
                        at_once.restore(key, 0, data, replace=True)
                    at_once.execute()
                fetches_and_looks = 6
                enough = scripts_run(client) + fetches_and_looks
                await until(lambda: scripts_run(client) >= enough)
            let_go.set()
            await until(lambda: len(ended) == 2)
            await b.gone(first.id)
            return server.lost_leases

    assert asyncio.run(main()) == 0
    assert not caplog.records
