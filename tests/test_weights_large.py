"""Weights hold for large payloads too, of which a fetch brings fewer than it wants."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from qsync import Mux, Task, TaskInfo
from qsync.server.weights import Shares
from tests.serving import bench
from tests.stores import Store

LARGE = b"x" * 100_000


@pytest.mark.faults(93)
@pytest.mark.parametrize("strict", [False, True])
def test_queue_of_large_payloads_gets_its_share(store: Store, prefix: str, *, strict: bool) -> None:
    """A fetch takes 40 of them at most."""
    started: Counter[str] = Counter()
    share: dict[str, int] = {}
    enough = asyncio.Event()

    async def main() -> None:
        mux = Mux()

        @mux.handle("a")
        async def a(task: TaskInfo) -> None:
            started[task.queue] += 1
            if started.total() == 300 and not share:
                share.update(started)
                enough.set()

        async with bench(store.url, prefix) as using:
            for _ in range(30):
                await using.client.enqueue_many([Task("a", LARGE, queue="heavy")] * 12)
            await using.client.enqueue_many([Task("a", b"", queue="light")] * 360)
            async with using.server(mux, queues={"heavy": 9, "light": 1}, strict=strict):
                await asyncio.wait_for(enough.wait(), 60)

    asyncio.run(main())
    least = 300 if strict else 240
    assert share["heavy"] >= least, share


def test_slots_given_back_are_given_again_and_no_more_than_there_are() -> None:
    shares = Shares({"heavy": 9, "light": 1}, strict=False)
    taken: Counter[str] = Counter()
    for _ in range(100):
        given = shares.split(100, ["heavy", "light"])
        assert sum(given.values()) == 100
        taken["light"] += given["light"]
        taken["heavy"] += min(given["heavy"], 40)
        shares.give_back("heavy", given["heavy"] - 40)
    assert taken["heavy"] == 40 * 100
    assert taken["light"] >= 100, "it is not starved meanwhile"
