"""With a million tasks, each call of the inspector runs a few short scripts, and other work
continues."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from qsync import Task
from qsync.broker import redis_clients
from qsync.broker.aio import AsyncBroker
from qsync.broker.call import Call
from qsync.inspector import Filter, Inspector, Step
from qsync.state import TaskState
from tests.guarantees.probes import pinging, slow_scripts
from tests.support.inspector_driver import Bed
from tests.support.ping_probe import run_at_once
from tests.support.server import bench
from tests.support.stores import Store

ERROR = "ValueError: no luck\n\n" + "\n".join(f"  line {n} of the trace" for n in range(200))

LOOKS: dict[str, Callable[[Inspector], Awaitable[Any]]] = {
    "overview": lambda i: i.overview(),
    "queue": lambda i: i.queue("default", days=90),
    "pending, first page": lambda i: i.tasks("default", "pending", limit=100),
    "pending, last page": lambda i: i.tasks("default", "pending", limit=100, newest_first=True),
    "pending by type": lambda i: i.tasks("default", "pending", filter=Filter(type="none")),
    "dead": lambda i: i.tasks("default", "dead", limit=100),
    "dead by error": lambda i: i.tasks("default", "dead", filter=Filter(error="no luck")),
    "dead by another error": lambda i: i.tasks("default", "dead", filter=Filter(error="none")),
    "one pending": lambda i: i.task("p5000"),
    "one dead": lambda i: i.task("d100"),
    "find": lambda i: i.find("p5000"),
    "explain": lambda i: i.explain("p5000"),
    "explain a dead one": lambda i: i.explain("d100"),
    "servers": lambda i: i.servers(),
    "schedules": lambda i: i.schedules(),
}

CHANGES: dict[str, Callable[[Inspector], Awaitable[Any]]] = {
    "run dead": lambda i: i.run_dead("default"),
    "run dead by error": lambda i: i.run_dead("default", Filter(error="no luck")),
    "delete dead": lambda i: i.delete_dead("default", Filter(type="t")),
    "purge": lambda i: i.purge("default", "pending"),
    "run": lambda i: i.run("d4999"),
    "cancel": lambda i: i.cancel("p9000"),
    "delete": lambda i: i.delete("p9001"),
    "forget": lambda i: i.forget("default"),
    "forget by force": lambda i: i.forget("default", force=True),
    "pause": lambda i: i.pause("default"),
    "resume": lambda i: i.resume("default"),
}


class Counting(AsyncBroker):
    """Counts the scripts that are run."""

    made = 0

    async def run(self, call: Call[Any], **options: Any) -> Any:
        self.made += 1
        return await super().run(call, **options)

    async def run_many(self, calls: Any, **options: Any) -> Any:
        self.made += len(calls)
        return await super().run_many(calls, **options)


async def fill(url: str, prefix: str, *, pending: int, dead: int) -> None:
    async with bench(url, prefix) as made:
        bed = Bed(made.broker, prefix)
        for at in range(0, dead, 5000):
            await bed.dead(*[Task("t", {"n": n}, id=f"d{n}") for n in range(at, at + 5000)],
                           error=ERROR[:2000])  # fmt: skip
        for at in range(0, pending, 50_000):
            last = min(at + 50_000, pending)
            await made.client.enqueue_many([Task("t", {}, id=f"p{n}") for n in range(at, last)])
        await bed.serve("w")


@asynccontextmanager
async def looking(url: str, prefix: str) -> AsyncIterator[tuple[Inspector, Counting]]:
    broker = Counting(redis_clients.parse(url))
    async with Inspector(broker, prefix=prefix) as inspector:
        yield inspector, broker


async def test_each_call_runs_few_scripts_in_a_large_store(store: Store, prefix: str) -> None:
    await fill(store.url, prefix, pending=10_000, dead=5000)
    async with looking(store.url, prefix) as (inspector, broker):
        counts = {}
        for name, make in (LOOKS | CHANGES).items():
            broker.made = 0
            await make(inspector)
            counts[name] = broker.made
        assert max(counts.values()) <= 10, counts
        assert counts.pop("explain") <= 6, "`explain` also reads paused types and bounds"
        assert max(counts[name] for name in LOOKS if name in counts) <= 4, counts


@pytest.mark.slow
@pytest.mark.faults(29, 30)
@pytest.mark.timeout(900)
def test_calls_are_fast_with_a_million_pending_and_100_000_dead(prefix: str) -> None:
    """No call is slow, no script takes over 10 ms, and a purge of the million tasks delays no other
    call."""

    async def look(store: Store) -> dict[str, float]:
        took = {}
        async with looking(store.url, prefix) as (inspector, _):
            await inspector.ping()
            for name, make in (LOOKS | CHANGES).items():
                began = time.perf_counter()
                await make(inspector)
                took[name] = round(1000 * (time.perf_counter() - began), 1)
        return took

    async def work(store: Store, state: str, step: str) -> Step:
        total = Step(scanned=0, done=0, cursor=None)
        async with looking(store.url, prefix) as (inspector, _):
            args = (state,) if step == "purge" else ()
            async for made in inspector.steps(getattr(inspector, step), "default", *args):
                total += made
        return total

    with Store("valkey") as store:
        run_at_once(store.pid)
        asyncio.run(fill(store.url, prefix, pending=1_000_000, dead=100_000))
        with store.client() as client:
            client.config_set("slowlog-log-slower-than", 10_000)
            client.slowlog_reset()
            took = asyncio.run(look(store))
            print(took)  # noqa: T201 - shown with -s, and when it fails
            assert slow_scripts(store) == {}
            assert max(took.values()) < 300, took
            dead = client.zcard(f"{{{prefix}:default}}:dead")
            again = asyncio.run(work(store, "dead", "run_dead"))
            assert (again.done, again.cursor) == (dead, None)
            pending = client.zcard(f"{{{prefix}:default}}:pending")
            assert pending > 1_000_000
            with pinging(store) as pings:
                purged = asyncio.run(work(store, TaskState.PENDING, "purge"))
            print(f"longest ping during a purge of {purged.done}: {max(pings):.1f} ms")  # noqa: T201 - as above
            assert purged.done == pending
            assert slow_scripts(store) == {}
            assert max(pings) <= 20
