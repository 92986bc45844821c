"""With a million tasks waiting and a million to come, no script holds up the store."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from qsync.task import Task
from tests.guarantees.conftest import Launch, Measured
from tests.guarantees.probes import slow_scripts
from tests.ping_probe import run_at_once
from tests.processes import History
from tests.serving import bench
from tests.stores import Store, wait_until

MANY = 1_000_000
CHUNK = 100_000
DRAINED = 100_000


@pytest.mark.faults(29)
@pytest.mark.slow
def test_no_script_takes_over_10_ms_with_a_million_pending_and_a_million_scheduled(
    prefix: str, launch: Launch, history: History, measured: Measured
) -> None:
    """Enqueue, upkeep, fetch and settlement, with servers that come, die and are recovered."""
    later = datetime.now(UTC) + timedelta(hours=1)

    async def fill(store: Store) -> None:
        async with bench(store.url, prefix) as b:
            for _ in range(MANY // CHUNK):
                await b.client.enqueue_many([Task("work", {})] * CHUNK)
                await b.client.enqueue_many([Task("work", {}, process_at=later)] * CHUNK)

    with Store("valkey") as store:
        run_at_once(store.pid)
        with store.client() as client:
            client.config_set("slowlog-log-slower-than", 10_000)
            asyncio.run(fill(store))
            base = f"{{{prefix}:default}}"
            assert client.zcard(f"{base}:pending") == client.zcard(f"{base}:scheduled") == MANY
            measured("scale, scripts over 10 ms while enqueueing", slow_scripts(store))
            first, second = launch(store.url), launch(store.url)
            history.wait("end", DRAINED // 2, timeout=60)
            first.kill()
            history.wait("end", DRAINED, timeout=60)
            second.terminate()
            wait_until(lambda: client.zcard(f"{base}:active") == 0 or not second.running)
            slow = slow_scripts(store)
            measured("scale, scripts over 10 ms", slow)
            assert client.zcard(f"{base}:scheduled") == MANY
            assert slow == {}
