"""Servers report their counts for each type, and roll up minutes that have ended."""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any

import pytest

from qsync import InvalidTask, Mux, Task, TaskInfo
from qsync.inspector import Inspector
from qsync.keys import QueueKeys
from qsync.server.run_metrics import RunMetrics
from qsync.server.type_reports import TypeReports, roll_up
from qsync.server_starts import STARTS, StoredStart, encode_starts, start_report
from qsync.slow_runs import SLOWEST, SlowRun, encode_slow_runs
from qsync.times import DAY_US
from qsync.type_counts import TypeCounts, encode_block
from qsync.type_rolls import (
    DIRECTORY,
    STARTS_FIELD,
    decode_directory,
    hours_of,
    minutes_of,
    slow_runs_of,
)
from tests.support.server import Bench, bench, run, until
from tests.support.stores import Store

MIB = 1024 * 1024


def handlers() -> Mux:
    mux = Mux()

    @mux.handle("good")
    async def good(task: TaskInfo) -> None:
        pass

    @mux.handle("bad")
    async def bad(task: TaskInfo) -> None:
        raise ValueError("no")

    return mux


async def run_some(made: Bench, server_id: str | None = None) -> Any:
    """Run tasks of two types on a server that then stops."""
    server = made.server(handlers(), server_id=server_id)
    server.run_metrics = RunMetrics(server.mux.types)
    await server.start()
    await made.client.enqueue_many([Task("good")] * 5 + [Task("bad", retry=0)] * 3)
    await until(lambda: server.run_metrics is not None and _ended(server.run_metrics.rows()) == 8)
    await server.stop()
    return server


def _ended(rows: Any) -> int:
    return sum(sum(row.outcomes) for row in rows)


async def figures(inspector: Inspector, period: Any = "1h") -> dict[str, tuple[int, int, int]]:
    found = await inspector.types(period=period)
    return {
        one.type: (one.stats.started, one.stats.completed, one.stats.dead) for one in found.types
    }


def test_statistics_are_reported_rolled_up_and_shown(store: Store, prefix: str) -> None:
    async def main() -> None:
        async with bench(store.url, prefix) as made:
            await run_some(made)
            inspector = Inspector(made.broker, prefix=prefix)
            expected = {"good": (5, 5, 0), "bad": (3, 0, 3)}
            assert await figures(inspector) == expected
            keys = made.keys()
            [now_us] = {(await inspector.overview()).at.timestamp() * 1e6}
            assert not await roll_up(made.broker, keys, int(now_us)), "the minute has not ended"
            later = int(now_us) + 61_000_000
            assert await roll_up(made.broker, keys, later)
            assert not await roll_up(made.broker, keys, later), "nothing is left"
            assert await made.broker.ask("EXISTS", keys.key("type_reports")) == 0
            assert await figures(inspector) == expected
            assert await figures(inspector, "24h") == expected
            await run_some(made)
            twice = {"good": (10, 10, 0), "bad": (6, 0, 6)}
            assert await figures(inspector) == twice
            assert await roll_up(made.broker, keys, later)
            for period in ("1h", "24h", "7d", "90d"):
                stats = await inspector.type_stats("bad", period=period)
                points = [point.stats for point in stats.points if point.stats]
                assert sum(point.started for point in points) == 6
                assert (stats.stats.failed, stats.stats.failure_share) == (6, 1.0)
                assert stats.stats.run_p95 is not None
                assert stats.stats.wait_p50 is not None
            listed = await inspector.types()
            assert [(one.type, one.dead) for one in listed.types] == [("bad", 6), ("good", 0)]
            assert (listed.dead.read, listed.dead.whole) == (6, True)
            with pytest.raises(InvalidTask, match="period: '90d' is not one of 1h, 24h, 7d"):
                await inspector.types(period="90d")
            assert (await inspector.type_stats("unknown")).stats.started == 0

    run(main())


def test_server_that_restarts_under_the_same_id_adds_to_its_statistics(
    store: Store, prefix: str
) -> None:
    async def main() -> None:
        async with bench(store.url, prefix) as made:
            for _ in range(2):
                await run_some(made, "web-0")
            inspector = Inspector(made.broker, prefix=prefix)
            assert await figures(inspector) == {"good": (10, 10, 0), "bad": (6, 0, 6)}

    run(main())


def test_statistics_refused_by_a_full_store_are_counted_and_stop_no_task(
    own_store: Store, prefix: str
) -> None:
    async def main(client: Any) -> None:
        async with bench(own_store.url, prefix) as made:
            server = made.server(handlers())
            server.run_metrics = RunMetrics(server.mux.types)
            await server.start()
            await made.client.enqueue_many([Task("good")] * 5)
            await until(
                lambda: server.run_metrics is not None and _ended(server.run_metrics.rows()) == 5
            )
            client.config_set("maxmemory", 1)
            await server.stop()
            client.config_set("maxmemory", 0)
            assert server.run_metrics is not None
            assert sum(row.dropped for row in server.run_metrics.rows()) == 5
            assert not client.exists(made.keys().key("type_reports"))

    with own_store.client() as client:
        run(main(client))


def test_idle_server_reports_nothing(store: Store, prefix: str) -> None:
    async def main() -> None:
        async with bench(store.url, prefix) as made:
            server = made.server(handlers())
            server.run_metrics = RunMetrics(server.mux.types)
            async with server:
                reports = next(part for part in server._parts if isinstance(part, TypeReports))
                await made.client.enqueue(Task("good"))
                await until(
                    lambda: (
                        server.run_metrics is not None and _ended(server.run_metrics.rows()) == 1
                    )
                )
                await reports.report()
                key = made.keys().key("type_reports")
                await made.broker.ask("DEL", key)
                assert await reports.report() == {}
                assert await made.broker.ask("EXISTS", key) == 0

    run(main())


def busy(rng: random.Random, rate: int) -> TypeCounts:
    """Return the counts of a type for a minute or an hour, with widely distributed run times."""
    row = TypeCounts(rate, [rate - rate // 20, rate // 25, rate // 100, 0, 0, 0, 0])
    for _ in range(min(rate, 300)):
        row.waits.count(rng.lognormvariate(-3, 1))
        row.runs.count(rng.lognormvariate(-1, 1))
    return row


def test_a_hundred_types_over_90_days_take_less_than_10_mib(store: Store, prefix: str) -> None:
    async def main() -> None:
        async with bench(store.url, prefix) as made:
            rng, key = random.Random(1), made.keys().key("type_stats")
            rates = [rng.randrange(5, 2000) for _ in range(8)]
            minutes = [
                encode_block({at: busy(rng, rate + rng.randrange(rate)) for at in range(60)})
                for rate in rates
            ]
            hours = [
                encode_block({at: busy(rng, 60 * rate + rng.randrange(rate)) for at in range(24)})
                for rate in rates
            ]
            names = [f"reports.tasks.type_{number:03}" for number in range(100)]
            start = start_report(20_000 * DAY_US, "v1.4.2-12-gabcdef0", names)
            starts = [StoredStart(start.at_us, start.at_us, start.version, 9, start.types)] * STARTS
            await made.broker.ask("HSET", key, STARTS_FIELD, encode_starts(starts))
            runs = [
                SlowRun(10**7, rng.randbytes(11).hex(), 20_000 * DAY_US, "vm-" + 24 * "0")
                for _ in range(2 * SLOWEST)
            ]
            for number in range(100):
                type, fields = names[number], list[Any]()
                fields += (slow_runs_of(type), encode_slow_runs(runs))
                for hour in range(490_000, 490_049):
                    fields += (minutes_of(hour, type), minutes[number % 8])
                for day in range(20_000, 20_091):
                    fields += (hours_of(day, type), hours[number % 8])
                await made.broker.ask("HSET", key, *fields)
            used = await made.broker.ask("MEMORY", "USAGE", key, "SAMPLES", 0)
            print(f"{used / MIB:.2f} MiB")  # noqa: T201 - shown with -s
            assert used < 10 * MIB, f"{used / MIB:.2f} MiB"

    run(main())


def test_two_servers_that_roll_up_at_the_same_time_count_once(store: Store, prefix: str) -> None:
    async def main() -> None:
        async with bench(store.url, prefix) as made:
            await run_some(made)
            inspector, keys = Inspector(made.broker, prefix=prefix), QueueKeys(prefix, "default")
            now_us = int((await inspector.overview()).at.timestamp() * 1e6) + 61_000_000
            done = await asyncio.gather(*[roll_up(made.broker, keys, now_us) for _ in range(4)])
            assert sum(done) == 1
            assert await figures(inspector) == {"good": (5, 5, 0), "bad": (3, 0, 3)}
            data = await made.broker.ask("HGET", keys.key("type_stats"), DIRECTORY)
            assert set(decode_directory(data).types) == {"good", "bad"}

    run(main())


def test_slowest_runs_and_starts_of_servers_are_reported_and_kept(
    store: Store, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        gates = {f"t{number}": asyncio.Event() for number in range(12)}
        mux = Mux()

        @mux.handle("slow")
        async def slow(task: TaskInfo) -> None:
            await gates[task.id].wait()
            if task.id == "t0":
                raise ValueError("no")

        @mux.handle("blocking")
        async def blocking(task: TaskInfo) -> None:
            time.sleep(0.002)  # noqa: ASYNC251 - it ends at its first step, late

        async with bench(store.url, prefix) as made:
            inspector, keys = Inspector(made.broker, prefix=prefix), made.keys()
            server = made.server(mux, version="1.4.2")
            await server.start()
            reports = next(part for part in server._parts if isinstance(part, TypeReports))
            await until(lambda: reports._now_us() > 0)
            await reports.report()
            stats = await inspector.type_stats("slow")
            assert [(start.version, start.servers) for start in stats.starts] == [("1.4.2", 1)]
            assert (await inspector.type_stats("elsewhere")).starts == []
            await made.client.enqueue_many([Task("slow", id=id, retry=0) for id in gates])
            for id in reversed(gates):  # t11 takes the shortest time, t0 the longest
                gates[id].set()
                await (made.reaches(id, "dead") if id == "t0" else made.gone(id))
            await made.client.enqueue(Task("blocking", id="b"))
            await made.gone("b")
            await server.stop()
            now_us = int((await inspector.overview()).at.timestamp() * 1e6)
            for rolls in range(3):  # before, between and after the two roll-ups
                found = await inspector.slow_tasks("slow")
                assert [task.id for task in found] == [f"t{number}" for number in range(10)], rolls
                assert [task.state for task in found] == ["dead", *["completed"] * 9]
                assert [task.stored for task in found] == [True, *[False] * 9]
                assert {task.server for task in found} == {server.holder}
                [one] = await inspector.slow_tasks("blocking")
                assert one.seconds >= 0.002
                if rolls == 0:
                    assert await roll_up(made.broker, keys, now_us + 61_000_000)
                    assert not await made.broker.ask("EXISTS", keys.key("type_reports"))
                if rolls == 1:
                    await _another(made, mux, keys, now_us)
            stats = await inspector.type_stats("slow", period="24h")
            assert [(s.version, s.servers) for s in stats.starts] == [("1.4.2", 1), ("1.5", 1)]

    run(main())


async def _another(made: Bench, mux: Mux, keys: QueueKeys, now_us: int) -> None:
    """Run a server of a later version on the queue, then roll up its report."""
    server = made.server(mux, version="1.5")
    async with server:
        reports = next(part for part in server._parts if isinstance(part, TypeReports))
        await until(lambda: reports._now_us() > 0)
        assert await reports.report(), "the server reports its start"
        assert await reports.report() == {}
    assert await roll_up(made.broker, keys, now_us + 121_000_000)
