"""No script blocks the store, even with a million pending and a million scheduled tasks."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from qsync.task import Task
from tests.guarantees.conftest import Launch, Measured
from tests.guarantees.probes import slow_scripts
from tests.support.ping_probe import run_at_once
from tests.support.processes import History
from tests.support.server import bench
from tests.support.stores import Store

MANY = 1_000_000
CHUNK = 100_000
DRAINED = 100_000

ROUNDS = 3
"""Maximum number of rounds. One round without a slow script is enough, because other load on the
machine may delay the store in the middle of a script."""


@pytest.mark.faults(29)
@pytest.mark.slow
def test_no_script_takes_over_10_ms_with_a_million_pending_and_a_million_scheduled(
    prefix: str, launch: Launch, history: History, measured: Measured
) -> None:
    """Tasks are enqueued, promoted, fetched and settled while servers start, die, and have their
    tasks recovered."""
    later = datetime.now(UTC) + timedelta(hours=1)

    async def fill(store: Store, chunks: int) -> None:
        async with bench(store.url, prefix) as b:
            for _ in range(chunks):
                await b.client.enqueue_many([Task("work", {})] * CHUNK)
                await b.client.enqueue_many([Task("work", {}, process_at=later)] * CHUNK)

    with Store("valkey") as store, store.client() as client:
        run_at_once(store.pid)
        client.config_set("slowlog-log-slower-than", 10_000)
        asyncio.run(fill(store, MANY // CHUNK))
        base = f"{{{prefix}:default}}"
        assert client.zcard(f"{base}:pending") == client.zcard(f"{base}:scheduled") == MANY
        for at in range(1, ROUNDS + 1):
            if at > 1:
                client.slowlog_reset()
                asyncio.run(fill(store, DRAINED // CHUNK))
            ended = len(history.of("end"))
            first, second = launch(store.url), launch(store.url)
            history.wait("end", ended + DRAINED // 2, timeout=60)
            first.kill()
            history.wait("end", ended + DRAINED, timeout=60)
            second.terminate()
            second.wait()
            slow = slow_scripts(store)
            measured("scale: scripts that took over 10 ms", slow)
            assert client.zcard(f"{base}:scheduled") >= MANY
            if not slow:
                break
        assert slow == {}
