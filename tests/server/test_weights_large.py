"""Weights also apply to large payloads, for which a fetch returns fewer tasks than requested."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from qsync import Mux, Task, TaskInfo
from qsync.server.weights import Shares
from tests.support.server import bench
from tests.support.stores import Store

LARGE = b"x" * 250_000


@pytest.mark.faults(93)
@pytest.mark.parametrize("strict", [False, True])
def test_queue_of_large_payloads_gets_its_share(store: Store, prefix: str, *, strict: bool) -> None:
    """The payloads are so large that a fetch returns at most 16 of these tasks."""
    started: Counter[str] = Counter()
    share: dict[str, int] = {}
    enough = asyncio.Event()

    async def main() -> None:
        mux = Mux()

        @mux.handle("a")
        async def a(task: TaskInfo) -> None:
            started[task.queue] += 1
            if started.total() == 200 and not share:
                share.update(started)
                enough.set()

        async with bench(store.url, prefix) as using:
            for _ in range(20):
                await using.client.enqueue_many([Task("a", LARGE, queue="heavy")] * 12)
            await using.client.enqueue_many([Task("a", b"", queue="light")] * 240)
            async with using.server(mux, queues={"heavy": 9, "light": 1}, strict=strict):
                await asyncio.wait_for(enough.wait(), 60)

    asyncio.run(main())
    least = 200 if strict else 160
    assert share["heavy"] >= least, share


def rounds(
    weights: dict[str, int], most: dict[str, int], *, slots: int = 100, count: int = 200
) -> dict[str, int]:
    """Return how many tasks each queue gets in `count` rounds, if a fetch returns at most `most`
    tasks."""
    shares = Shares(weights, strict=False)
    taken = dict.fromkeys(weights, 0)
    for at in range(count):
        if at == 3:  # count only rounds after the shares have adapted
            taken = dict.fromkeys(weights, 0)
        given = shares.split(slots, list(weights))
        assert sum(given.values()) <= slots
        for name, wanted in given.items():
            if wanted:
                brought = min(wanted, most.get(name, wanted))
                taken[name] += brought
                shares.note_fetch(name, wanted, brought, left=True)
    return taken


@pytest.mark.faults(93)
@pytest.mark.parametrize("slots", [5, 100, 1000])
@pytest.mark.parametrize(
    ("weights", "most"),
    [
        ({"heavy": 9, "light": 1}, {"heavy": 4}),
        ({"heavy": 9, "light": 1}, {"heavy": 4, "light": 4}),
        ({"heavy": 1, "light": 1}, {"heavy": 4}),
        ({"heavy": 5, "light": 3, "other": 1}, {"heavy": 20, "light": 20}),
        ({"heavy": 2, "light": 2, "other": 2}, {"heavy": 4, "light": 4}),
    ],
)
def test_short_fetches_keep_the_ratio_of_the_weights(
    weights: dict[str, int], most: dict[str, int], slots: int
) -> None:
    taken = rounds(weights, most, slots=slots)
    total = sum(taken.values())
    for name, weight in weights.items():
        assert taken[name] / total == pytest.approx(weight / sum(weights.values()), rel=0.15)


def test_short_fetches_of_a_light_queue_do_not_delay_others() -> None:
    taken = rounds({"large": 1, "small": 9}, {"large": 4})
    assert taken["small"] >= 197 * 90
    assert taken["large"] == 197 * 4


def test_queue_whose_fetches_are_full_again_shares_as_before() -> None:
    shares = Shares({"heavy": 9, "light": 1}, strict=False)
    shares.note_fetch("heavy", 90, 4, left=True)
    assert sum(shares.split(100, ["heavy", "light"]).values()) < 100
    shares.note_fetch("heavy", 90, 90, left=True)
    assert sum(shares.split(100, ["heavy", "light"]).values()) == 100
