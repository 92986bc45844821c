"""Queues share a server by weight, and tenants share a queue fairly."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from qsync.mux import Mux
from qsync.task import Task, TaskInfo
from tests.guarantees.conftest import Measured
from tests.support.server import Bench, bench, until
from tests.support.stores import Store

WEIGHTS = {"critical": 5, "default": 3, "lower": 1}
ROUNDS = 3
PREFETCHES = [pytest.param(None, id="prefetch"), pytest.param(0, id="no-prefetch")]


async def fill(b: Bench, counts: dict[str, int]) -> None:
    for queue, count in counts.items():
        await b.client.enqueue_many([Task("note", queue=queue) for _ in range(count)])


def noting(note: Callable[[TaskInfo], Any]) -> Mux:
    """Return a mux with a handler that records its task and yields to the loop, as most handlers
    do."""
    mux = Mux()

    @mux.handle("note")
    async def handler(task: TaskInfo) -> None:
        note(task)
        await asyncio.sleep(0)

    return mux


def have_run(order: list[str], queue: str, count: int) -> bool:
    return order.count(queue) >= count


def shares(order: list[str]) -> dict[str, float]:
    counts = Counter(order)
    return {queue: counts[queue] / len(order) for queue in WEIGHTS}


@pytest.mark.faults(78)
@pytest.mark.parametrize(("prefetch", "concurrency"), [(None, 100), (0, 100), (None, 7)])
def test_full_queues_share_by_weight(
    valkey: Store, prefix: str, measured: Measured, prefetch: int | None, concurrency: int
) -> None:
    order: list[str] = []

    async def main() -> None:
        async with bench(valkey.url, prefix) as b:
            await fill(b, {"critical": 6000, "default": 4000, "lower": 2000})
            mux = noting(lambda task: order.append(task.queue))
            async with b.server(mux, queues=WEIGHTS, prefetch=prefetch, concurrency=concurrency):
                await until(lambda: len(order) >= 9000, timeout=30)

    asyncio.run(main())
    for count in (900, 9000):
        found = shares(order[:count])
        wrong = max(abs(found[queue] - weight / 9) for queue, weight in WEIGHTS.items())
        measured(f"largest gap between a queue's share of {count} tasks and its weight", wrong)
        assert wrong <= 0.02, found


@pytest.mark.faults(78)
@pytest.mark.parametrize("limited", [tuple(WEIGHTS), ("critical",), ("lower",)], ids=" ".join)
def test_queues_whose_tasks_have_limits_share_by_weight(
    valkey: Store, prefix: str, measured: Measured, limited: tuple[str, ...]
) -> None:
    order: list[str] = []

    async def main() -> None:
        async with bench(valkey.url, prefix) as b:
            for queue, weight in WEIGHTS.items():
                limits = ["api"] if queue in limited else None
                await b.client.enqueue_many(
                    [Task("note", queue=queue, limits=limits) for _ in range(300 * weight)]
                )
            mux = noting(lambda task: order.append(task.queue))
            async with b.server(mux, queues=WEIGHTS, concurrency=7):
                await until(lambda: len(order) >= 1800, timeout=30)

    asyncio.run(main())
    found = shares(order[:1800])
    wrong = max(abs(found[queue] - weight / 9) for queue, weight in WEIGHTS.items())
    measured("largest deviation of the shares of queues whose tasks have limits", wrong)
    assert wrong <= 0.05, found


@pytest.mark.faults(78)
def test_tasks_with_an_open_limit_keep_their_place_among_others(
    valkey: Store, prefix: str, measured: Measured
) -> None:
    order: list[str] = []

    async def main() -> None:
        async with bench(valkey.url, prefix) as b:
            await b.client.enqueue_many([Task("note")] * 300)
            await b.client.enqueue_many(
                [Task("note", limits=["api"], id=f"l{n}") for n in range(100)]
            )
            await b.client.enqueue_many([Task("note")] * 3000)
            async with b.server(noting(lambda task: order.append(task.id)), concurrency=7):
                await until(lambda: len(order) >= 3400, timeout=30)

    asyncio.run(main())
    places = [place for place, id in enumerate(order) if id in {f"l{n}" for n in range(100)}]
    measured("position at which the last of tasks 300 to 399 ran; these have a limit", places[-1])
    assert [order[place] for place in places] == [f"l{n}" for n in range(100)]
    assert places[-1] < 1500  # tasks that had already been leased run first


@pytest.mark.faults(78)
@pytest.mark.parametrize("prefetch", PREFETCHES)
def test_the_share_of_an_empty_queue_goes_to_the_others(
    valkey: Store, prefix: str, measured: Measured, prefetch: int | None
) -> None:
    async def main(order: list[str]) -> None:
        async with bench(valkey.url, prefix) as b:
            await fill(b, {"critical": 500, "default": 6000, "lower": 3000})
            mux = noting(lambda task: order.append(task.queue))
            async with b.server(mux, queues=WEIGHTS, prefetch=prefetch):
                await until(lambda: len(order) >= 9500, timeout=30)

    # Repeat the measurement, because a process that gets no CPU time for 100 ms assumes that the
    # node of its queue has stopped.
    for _ in range(ROUNDS):
        order: list[str] = []
        asyncio.run(main(order))
        last = max(at for at, queue in enumerate(order) if queue == "critical")
        measured("position at which the last task of the queue of weight 5 ran", last)
        if last < 1200:
            break
    # While all three queues were full, tasks ran by weight. Afterwards, the remaining two queues
    # share 3 to 1.
    assert last < 1200
    found = shares(order[last + 1 : last + 4001])
    measured("share of the queue of weight 3 after that of weight 5 has emptied", found["default"])
    assert abs(found["default"] - 0.75) <= 0.02


@pytest.mark.faults(78)
@pytest.mark.parametrize("prefetch", PREFETCHES)
def test_a_queue_of_weight_1_does_not_starve_beside_one_of_1000(
    valkey: Store, prefix: str, measured: Measured, prefetch: int | None
) -> None:
    order: list[str] = []

    async def main() -> None:
        async with bench(valkey.url, prefix) as b:
            await fill(b, {"heavy": 10_000, "light": 50})
            mux = noting(lambda task: order.append(task.queue))
            async with b.server(mux, queues={"heavy": 1000, "light": 1}, prefetch=prefetch):
                await until(lambda: len(order) >= 10_050, timeout=30)

    asyncio.run(main())
    early = order[:9000].count("light")
    measured(
        "tasks of the queue of weight 1 among the first 9,000, beside a queue of weight 1000", early
    )
    assert 5 <= early <= 30


@pytest.mark.faults(78)
@pytest.mark.parametrize("prefetch", PREFETCHES)
def test_a_queue_that_was_empty_does_not_wait_for_a_full_one(
    valkey: Store, prefix: str, measured: Measured, prefetch: int | None
) -> None:
    order: list[str] = []

    async def main() -> None:
        async with bench(valkey.url, prefix) as b:
            await fill(b, {"full": 20_000})
            mux = noting(lambda task: order.append(task.queue))
            weights = {"full": 1, "late": 1, "other": 1}
            async with b.server(mux, queues=weights, prefetch=prefetch, sweep=60.0, lease=60.0):
                for at in range(1, 6):
                    await until(partial(have_run, order, "full", 1000 * at))
                    order.append("enqueued")
                    await fill(b, {"late": 2})
                    await until(partial(have_run, order, "late", 2 * at), timeout=30)

    asyncio.run(main())
    begins = [at for at, what in enumerate(order) if what == "enqueued"]
    between = [order[begin : order.index("late", begin)].count("full") for begin in begins]
    measured("maximum number of tasks that ran before a new task of an empty queue", max(between))
    assert order.count("full") < 20_000, "the full queue ran empty during the measurement"
    # The server needs about 0.1 s to run the tasks that it has already leased.
    assert max(between) < 5000


@pytest.mark.faults(78)
@pytest.mark.parametrize("prefetch", PREFETCHES)
def test_a_tenant_with_few_tasks_does_not_wait_for_one_with_many(
    valkey: Store, prefix: str, measured: Measured, prefetch: int | None
) -> None:
    order: list[str] = []
    second_enqueued = asyncio.Event()

    async def main() -> None:
        async with bench(valkey.url, prefix) as b:
            await b.client.enqueue_many(
                [Task("note", fairness_key="many", headers={"t": "many"}) for _ in range(10_000)]
            )
            mux = noting(lambda task: order.append(task.headers["t"]))
            async with b.server(mux, prefetch=prefetch, concurrency=20):
                await until(lambda: len(order) >= 1000)
                await b.client.enqueue_many(
                    [Task("note", fairness_key="few", headers={"t": "few"}) for _ in range(100)]
                )
                order.append("enqueued")
                second_enqueued.set()
                await until(lambda: order.count("few") == 100)

    asyncio.run(main())
    begin = order.index("enqueued")
    last = max(at for at, tenant in enumerate(order) if tenant == "few")
    between = order[begin:last].count("many")
    assert order[:begin].count("many") < 9000, "the first tenant ended before the second began"
    measured(
        "tasks of the first tenant that ran before the second tenant's tasks had ended", between
    )
    assert between < 400
