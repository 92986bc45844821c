"""Metrics by type and schedule are exact for short queues, and estimates with a bounded cost for
long queues."""

from __future__ import annotations

from qsync import Task
from qsync.broker import schedule_run_ops
from qsync.broker.schedule_run_ops import Note, missed
from qsync.contrib import prometheus
from qsync.inspector import LastRun, QueueSample, TypeShares
from qsync.inspector.monitoring import SAMPLE, SMALL_SAMPLE
from qsync.times import from_us
from tests.contrib.test_prometheus import series
from tests.support.inspector_driver import S, bed
from tests.support.stores import Store


async def test_samples_are_exact_up_to_their_size_and_estimates_above(
    valkey: Store, prefix: str
) -> None:
    async with bed(valkey.url, prefix) as made:
        inspector = made.inspector
        await made.dead(*[Task("mail") for _ in range(3)], Task("π" * 100))
        await made.enqueue(*[Task("read") for _ in range(SAMPLE - 1)], Task("é"))
        await inspector.pause_type("held")
        await made.broker.ask("HSET", made.keys().key("tasks"), "damaged", b"\x00")
        await made.broker.ask("ZADD", made.keys().key("dead"), 1, "damaged", 2, "lost")
        [short, none] = await inspector.samples(["default", "nothing"])
        assert short.pending.types == {"read": SAMPLE - 1, "é": 1}
        assert (short.pending.total, short.pending.read) == (SAMPLE, SAMPLE)
        assert short.dead == TypeShares(total=6, read=4, types={"mail": 4, "π" * 100: 2})
        assert short.paused_types == ["held"]
        empty = TypeShares(total=0, read=0, types={})
        assert none == QueueSample(
            queue="nothing", pending=empty, dead=empty, paused_types=[], schedules=[]
        )

        mixed = [Task("often" if at % 4 else "rare") for at in range(6000)]
        await made.enqueue(*mixed, queue="long")
        await made.enqueue(*[Task("big", b"x" * 300_000) for _ in range(9)], queue="large")
        [long, large] = await inspector.samples(["long", "large"])
        assert (long.pending.total, long.pending.read) == (6000, SAMPLE)
        assert abs(long.pending.types["rare"] - 1500) < 400
        assert sum(long.pending.types.values()) == 6000
        assert large.pending.types == {"big": 9}
        assert 1 <= large.pending.read <= 3
        many = await inspector.samples(["long"] * 1000)
        assert many[-1].pending.read == SMALL_SAMPLE
        assert many[-1].pending.total == 6000


async def test_reading_samples_takes_no_more_of_the_store_when_a_queue_is_long(
    valkey: Store, prefix: str
) -> None:
    async with bed(valkey.url, prefix) as made:
        calls = []
        for size in (SAMPLE, 5000):
            await made.enqueue(*[Task("read") for _ in range(size)])
            await made.broker.ask("CONFIG", "RESETSTAT")
            await made.inspector.samples(["default"])
            stats = await made.broker.ask("INFO", "COMMANDSTATS")
            used = [line.partition(b":") for line in stats.splitlines() if line[:1] != b"#"]
            calls.append(
                {name: int(text.partition(b",")[0][6:]) for name, _, text in used
                 if name in (b"cmdstat_zrange", b"cmdstat_hstrlen", b"cmdstat_hmget")}
            )  # fmt: skip
        assert calls[0] == calls[1] != {}
        assert sum(calls[0].values()) <= 2 * SAMPLE + 4


async def test_last_success_and_failure_of_each_schedule(valkey: Store, prefix: str) -> None:
    def ended(name: str, tick_s: int, outcome: str) -> Note:
        tick, begun = tick_s * S, tick_s * S + 2_000_000
        return schedule_run_ops.ended(name, tick, outcome, begun_us=begun, took_ms=3000)

    def at(seconds: int) -> object:
        return from_us(seconds * S)

    async with bed(valkey.url, prefix) as made:
        notes = [
            ended("nightly", 1000, "c"), ended("nightly", 2000, "c"), ended("nightly", 3000, "f"),
            ended("nightly", 4000, "x"), Note("nightly", 5_000_000, "M"),
            ended("fine", 1000, "f"), missed("fine", 2000 * S, 1500 * S), ended("fine", 3000, "c"),
            Note("asked", 1_000_000, "M"), ended("early", 1000, "c")._replace(what="c-7,3"),
        ]  # fmt: skip
        await made.broker.run(schedule_run_ops.note_runs(made.keys(), notes))
        [sample] = await made.inspector.samples(["default"])
        assert sorted(sample.schedules, key=lambda run: run.schedule) == [
            LastRun(schedule="asked", succeeded_at=None, failed_at=None),
            LastRun(schedule="early", succeeded_at=from_us(1000 * S - 4000), failed_at=None),
            LastRun(schedule="fine", succeeded_at=at(3005), failed_at=at(2000)),
            LastRun(schedule="nightly", succeeded_at=at(2005), failed_at=at(3005)),
        ]
        for part in range(10):
            many = [ended(f"schedule-{part}-{number}", 7, "c") for number in range(100)]
            await made.broker.run(schedule_run_ops.note_runs(made.keys(), many))
        [sample] = await made.inspector.samples(["default"])
        assert len(sample.schedules) == len({run.schedule for run in sample.schedules}) == 500
        assert len((await made.inspector.samples(["default"] * 100))[0].schedules) == 20

        await made.enqueue(Task("read"))
        await made.inspector.pause_type("held")
        found = series(await prometheus.StoreMetrics(made.inspector).metrics())
        assert found["qsync_type_tasks", "default", "pending", "read"] == 1
        assert found["qsync_type_paused", "default", "held"] == 1
        name = "qsync_schedule_last_success_timestamp_seconds"
        shown = len([key for key in found if key[0] == name])
        assert prometheus.LABELLED_SCHEDULES - 1 <= shown <= prometheus.LABELLED_SCHEDULES


def test_types_beyond_the_bound_share_a_label() -> None:
    none = TypeShares(total=0, read=0, types={})
    samples = [
        QueueSample(
            queue=f"q{number}",
            pending=TypeShares(total=9, read=9, types={f"t{at}": at + 1 for at in range(40)}),
            dead=TypeShares(total=1, read=1, types={"t39": 1}) if number == 0 else none,
            paused_types=[],
            schedules=[],
        )
        for number in range(50)
    ]
    found = series(prometheus.store_metrics(None, samples=samples))
    of_types = {key[1:]: value for key, value in found.items() if key[0] == "qsync_type_tasks"}
    assert len({(key[0], key[2]) for key in of_types}) == prometheus.LABELLED_TYPES + 1
    assert sum(of_types.values()) == 50 * 820 + 1
    assert of_types["q0", "dead", "t39"] == 1
    assert of_types["other", "pending", "other"] < 50 * 820 / 2
