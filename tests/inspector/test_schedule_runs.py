"""The history of a schedule shows runs and their outcomes, missed ticks, manual runs, and
backfills."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from qsync import Mux, Qsync, Task, TaskInfo
from qsync.broker import schedule_run_ops
from qsync.broker.schedule_run_ops import Note, StoredRun, missed, tick_of
from qsync.errors import InvalidTask
from qsync.inspector import Backfill, Inspector, ScheduleRun
from qsync.schedule import tick_id
from tests.support.inspector_driver import bed
from tests.support.stores import Store, wait_until_async

HOUR_US = 3_600_000_000


def app_of(store: Store, prefix: str) -> Qsync:
    mux = Mux()

    @mux.handle("good")
    async def good(task: TaskInfo) -> None:
        await asyncio.sleep(0.02)

    @mux.handle("bad")
    async def bad(task: TaskInfo) -> None:
        raise ValueError("no")

    return Qsync(store.url, prefix=prefix, mux=mux)


async def history(
    inspector: Inspector, name: str, holds: Callable[[list[ScheduleRun]], bool]
) -> list[ScheduleRun]:
    """Wait until the history of a schedule meets a condition; return it."""
    found: list[ScheduleRun] = []

    async def look() -> bool:
        found[:] = await inspector.schedule_history(name)
        return holds(found)

    await wait_until_async(look)
    return found


async def test_runs_are_recorded_with_outcome_and_duration(store: Store, prefix: str) -> None:
    app = app_of(store, prefix)
    async with app.async_client() as client, app.inspector() as inspector:
        await client.schedules.put("fine", Task("good"), every=0.5)
        await client.schedules.put("broken", Task("bad", retry=0), every=3600)
        assert await inspector.schedule_history("fine") == []
        async with app.server(lease=5, sweep=0.2):
            await inspector.trigger("broken", queue="default")
            await inspector.trigger("broken", queue="default")
            runs = await history(
                inspector, "fine", lambda runs: len([r for r in runs if r.duration]) >= 2
            )
            failed = await history(
                inspector, "broken", lambda runs: [r.outcome for r in runs] == ["failed"] * 2
            )
        ended = [run for run in runs if run.duration is not None]
        assert {run.outcome for run in ended} == {"completed"}
        assert {run.made for run in runs} == {"tick"}
        assert runs == sorted(runs, key=lambda run: run.tick, reverse=True)
        for run in ended:
            assert run.started_at is not None
            assert 0.01 < (run.duration or 0) < 5
            assert timedelta() <= run.started_at - run.tick < timedelta(seconds=5)
        assert {run.made for run in failed} == {"manual"}, "a manual run is also listed"
        assert (await inspector.task(failed[0].task)) is not None
        await inspector.delete_schedule("broken", queue="default")
        assert await inspector.schedule_history("broken") == []


async def test_notes_replace_each_other_and_are_bounded(store: Store, prefix: str) -> None:
    async with bed(store.url, prefix) as made:
        keys, broker = made.keys(), made.broker

        async def note(*notes: Note) -> None:
            await broker.run(schedule_run_ops.note_runs(keys, notes))

        async def runs(name: str = "s") -> list[StoredRun]:
            [found] = await broker.run(schedule_run_ops.schedule_runs(keys, [name]))
            return found

        await note(Note("s", 1000, "M"), Note("s", 1000, "", "c5,70"), Note("s", 1000, "M"))
        assert await runs() == [StoredRun(1000, "manual", "completed", 5, 70)]
        await note(Note("s", 1000, "", "f6,80"))
        assert await runs() == [StoredRun(1000, "manual", "failed", 6, 80)]
        # A missed tick does not replace a run of the same time; a later run ends the warning.
        await note(missed("s", 1_000_000, 1_000_000))
        assert (await runs())[0].outcome == "failed"
        assert await made.inspector.missed_runs(["default"]) == []
        await note(missed("s", 3 * HOUR_US, HOUR_US), missed("other", HOUR_US, HOUR_US))
        [first, second] = await made.inspector.missed_runs(["default", "nothing"])
        assert (first.schedule, first.tick.hour, second.schedule) == ("s", 3, "other")
        assert (await runs())[-1] == StoredRun(
            3 * HOUR_US // 1000, "tick", "missed", first_ms=HOUR_US // 1000
        )
        await note(Note("s", 4 * HOUR_US // 1000, "", "c1,1"))
        [left] = await made.inspector.missed_runs(["default"])
        assert left.schedule == "other"
        # A history has at most 20 runs, and a limited size.
        await note(*[Note("s", 1_764_428_400_000 + n, "B", f"c{n},86400000") for n in range(100)])
        assert [run.lag_ms for run in await runs()] == list(range(80, 100))
        await note(*[missed(f"m{n}", HOUR_US, HOUR_US) for n in range(9)])
        assert len(await made.inspector.missed_runs(["default"])) == 5
        with store.client() as client:
            assert len(client.hget(keys.key("schedule_runs"), "s")) < 700
            client.hset(keys.key("schedule_runs"), "s", "no 12 34Q 5T- 6Tm")
        assert await runs() == [StoredRun(5, "tick")]
        # Ticks of a paused schedule do not count as missed.
        await made.inspector.put_schedule("calm", Task("t"), cron="0 3 * * *")
        await made.inspector.pause_schedule("calm", queue="default")
        await note(missed("calm", HOUR_US, HOUR_US))
        assert await runs("calm") == []


async def test_ticks_that_no_server_enqueued_are_missed(store: Store, prefix: str) -> None:
    app = app_of(store, prefix)

    @app.periodic(every=3600, name="program")
    async def program() -> None: ...

    async with bed(store.url, prefix) as made, app.async_client() as client:
        await client.schedules.put("stored", Task("good"), every=3600)
        keys = made.keys()
        async with app.server(lease=5, sweep=0.2):

            async def published() -> bool:
                return await made.inspector.schedule("program", queue="default") is not None

            await wait_until_async(published)
        with store.client() as raw:
            now_us = int(raw.time()[0]) * 1_000_000
            tick_us = now_us // HOUR_US * HOUR_US - 3 * HOUR_US
            raw.hset(keys.key("ticks"), "program", tick_us)
            raw.hset(keys.key("schedules"), "#program", "")
            raw.zadd(keys.key("next_ticks"), {"stored": tick_us})
            record = raw.hget(keys.key("stored_schedules"), "stored")
            stamp = (tick_us - 1).to_bytes(8, "big")
            raw.hset(keys.key("stored_schedules"), "stored", stamp + record[8:])
        async with app.server(lease=5, sweep=0.2):

            async def noted() -> bool:
                found = await made.inspector.missed_runs(["default"])
                return {run.schedule for run in found} == {"program", "stored"}

            await wait_until_async(noted)
        for name in ("program", "stored"):
            [run, *_] = await made.inspector.schedule_history(name)
            assert (run.outcome, run.duration) == ("missed", None), name
            assert run.missed_from is not None
            assert timedelta(hours=1) < run.tick - run.missed_from + timedelta(hours=1), name


async def test_backfill_enqueues_each_tick_of_the_interval_once(store: Store, prefix: str) -> None:
    async with bed(store.url, prefix) as made:
        ann = made.inspector.acting("ann")
        await ann.put_schedule("nightly", Task("t", {"x": 1}), cron="0 3 * * *", tz="Europe/Moscow")
        end = datetime.now(UTC).replace(hour=12, minute=0, second=0, microsecond=0)
        end -= timedelta(days=1)
        given: dict[str, Any] = {"queue": "default", "start": end - timedelta(days=5), "end": end}
        ran = tick_id("nightly", int((end - timedelta(hours=12)).timestamp() * 1e6))
        assert tick_of(ran) is not None
        with_dry = await ann.backfill("nightly", dry_run=True, **given)
        assert with_dry == Backfill(ticks=5, enqueued=5, skipped=0)
        assert (await ann.events(action="schedule.backfill")) == []
        tick_ms = int((end - timedelta(hours=12)).timestamp() * 1000)  # 03:00 in Moscow
        noted = [Note("nightly", tick_ms, "", "c1,1")]
        await made.broker.run(schedule_run_ops.note_runs(made.keys(), noted))
        both = await asyncio.gather(*[ann.backfill("nightly", **given) for _ in range(2)])
        assert sum(done.enqueued for done in both if done is not None) in (4, 8)
        again = await ann.backfill("nightly", **given)
        assert again == Backfill(ticks=5, enqueued=0, skipped=5)
        page = await ann.tasks("default", "pending")
        assert page.total == 4, "each tick has exactly one task"
        [first, *_] = page.tasks
        assert first.id.endswith("T00:00:00Z"), "the id has the time of the tick, in UTC"
        [event, *_] = await ann.events(action="schedule.backfill")
        assert (event.by, event.subject) == ("ann", "nightly")
        # A tick that ran is not run again, even if its task has left the queue.
        await made.complete(await made.lease(), 0, b"")
        async for _ in ann.steps(ann.purge, "default", "completed"):
            pass
        done = await ann.backfill("nightly", **given)
        assert done is not None
        assert (done.enqueued, done.skipped) == (0, 5)
        assert {run.made for run in await ann.schedule_history("nightly")} == {"backfill", "tick"}
        assert await ann.backfill("none", **given) is None
        wrong: list[tuple[dict[str, Any], str]] = [
            ({"start": end}, "is not after the start"),
            ({"end": datetime.now(UTC) + timedelta(days=1)}, "is in the future"),
            ({"start": end - timedelta(days=2000)}, "over 1,000 ticks"),
            ({"start": datetime(1, 1, 1, tzinfo=UTC)}, "over 1,000 ticks"),
        ]
        for other, why in wrong:
            with pytest.raises(InvalidTask, match=why):
                await ann.backfill("nightly", **(given | other))


async def test_backfill_into_full_queue_reports_enqueued_ticks(store: Store, prefix: str) -> None:
    async with bed(store.url, prefix) as made:
        inspector = made.inspector
        await inspector.put_schedule("hourly", Task("t"), cron="0 * * * *")
        end = datetime.now(UTC).replace(minute=30, second=0, microsecond=0) - timedelta(days=1)
        given: dict[str, Any] = {
            "queue": "default",
            "start": end - timedelta(hours=150),
            "end": end,
        }
        await made.enqueue(Task("t", id="a"))
        await inspector.set_bounds("default", max_tasks=121)
        first = await inspector.backfill("hourly", **given)
        assert first is not None
        assert (first.ticks, first.enqueued, first.skipped) == (150, 120, 0)
        assert "queue default does not have enough space" in str(first.refused)
        assert [event.number for event in await inspector.events(action="schedule.backfill")] == [
            120
        ]
        again = await inspector.backfill("hourly", **given)
        assert again is not None
        assert (again.enqueued, again.skipped) == (0, 120)
        assert "queue default is full" in str(again.refused)
        for change in (
            await inspector.trigger("hourly", queue="default"), await inspector.copy_task("a"),
        ):  # fmt: skip
            assert change.outcome == "refused"
            assert "queue default is full" in str(change.why)
        await inspector.set_bounds("default", max_tasks=1000)
        rest = await inspector.backfill("hourly", **given)
        assert rest == Backfill(ticks=150, enqueued=30, skipped=120)
