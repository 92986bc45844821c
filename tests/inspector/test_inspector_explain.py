"""The inspector explains why a task is not running yet, and when it will run."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from qsync import Task, codec
from qsync.broker import ops, registry_ops
from qsync.broker.op_values import HandedBack
from qsync.inspector import Explanation
from qsync.keys import GlobalKeys
from qsync.message import Failure
from tests.support.inspector_driver import POLICY, Bed, S, bed
from tests.support.stores import Store

Work = Callable[[Bed], Awaitable[None]]


def run(store: Store, prefix: str, work: Work) -> None:
    async def main() -> None:
        async with bed(store.url, prefix) as made:
            await work(made)

    asyncio.run(main())


async def why(bed: Bed, id: str, **options: Any) -> Explanation:
    told = await bed.inspector.explain(id, **options)
    assert told.id == id
    assert "\n" not in told.sentence
    assert msgspec.json.encode(told)
    return told


def test_pending_task_has_a_position(store: Store, prefix: str) -> None:
    async def work(bed: Bed) -> None:
        await bed.serve("w")
        await bed.enqueue(*[Task("t", id=f"t{n}") for n in range(1, 413)])
        first, last = await why(bed, "t1"), await why(bed, "t412")
        assert (first.reason, first.rank, first.servers) == ("next", 0, 1)
        assert first.sentence == "Waiting: 1st of 412."
        assert (last.reason, last.rank) == ("behind", 411)
        assert last.sentence.startswith("Waiting: 412th of 412.")
        assert (last.attempt, last.retry) == (1, 3)

    run(store, prefix, work)


def test_pending_task_has_an_estimated_wait(store: Store, prefix: str) -> None:
    async def work(bed: Bed) -> None:
        await bed.serve("w")
        await bed.enqueue(*[Task("t", id=f"t{n}") for n in range(1000)])
        none = await why(bed, "t999")
        assert (none.rate, none.wait) == (None, None)
        told = asyncio.create_task(bed.inspector.explain("t999", measure=0.5))
        await bed.complete(await bed.lease(100), 60, b"")
        found = await told
        if found.rate is None or not found.rate:  # `explain` read twice before the tasks ended
            found = await bed.inspector.explain("t999", measure=0.5)
        assert found.rate is not None
        assert found.rank == 899
        assert found.wait == pytest.approx(899 / found.rate)
        assert " to go." in found.sentence

    run(store, prefix, work)


def test_reason_that_blocks_a_whole_queue_is_named(store: Store, prefix: str) -> None:
    async def work(bed: Bed) -> None:
        await bed.enqueue(Task("t", id="a"), Task("t", id="later", delay=1000))
        told = await why(bed, "a")
        assert (told.reason, told.servers) == ("no_server", 0)
        assert (
            told.sentence == "Waiting: 1st of 1. No running server takes tasks from queue default."
        )
        later = await why(bed, "later")
        assert (later.reason, later.also) == ("scheduled", ["no_server"])
        await bed.serve("elsewhere", queues=["other"])
        assert (await why(bed, "a")).reason == "no_server"
        await bed.serve("w", types=["u"])
        told = await why(bed, "a")
        assert told.reason == "no_server_knows"
        assert "No running server has a handler for 't'" in told.sentence
        await bed.serve("quiet", quiet=1)
        assert (await why(bed, "a")).reason == "no_server_knows"
        await bed.serve("w", quiet=1)
        assert (await why(bed, "a")).reason == "all_quiet"
        await bed.serve("w", running=10)
        told = await why(bed, "a")
        assert (told.reason, told.servers) == ("next", 1)
        assert told.sentence == "Waiting: 1st of 1; all 10 slots are busy."
        await bed.inspector.pause("default", by="ann", why="deploy")
        told = await why(bed, "a")
        assert told.reason == "paused"
        assert told.paused is not None
        assert "The queue is paused by ann since " in told.sentence
        assert told.sentence.endswith(" UTC: deploy.")

    run(store, prefix, work)


def test_scheduled_task_names_its_due_time(store: Store, prefix: str) -> None:
    async def work(bed: Bed) -> None:
        await bed.serve("w")
        at = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=3, minutes=5)
        await bed.enqueue(Task("t", id="a", process_at=at))
        told = await why(bed, "a")
        assert (told.reason, told.at, told.also) == ("scheduled", at, [])
        assert told.sentence.startswith(f"Scheduled for {at:%Y-%m-%d %H:%M:%S} UTC (in 3 h ")
        with store.client() as client:
            client.zadd(bed.keys().key("scheduled"), {"a": 5_000_000})
        assert "due now: the task starts when a server next looks" in (await why(bed, "a")).sentence

    run(store, prefix, work)


def test_failed_task_names_its_next_attempt(store: Store, prefix: str) -> None:
    async def work(bed: Bed) -> None:
        await bed.serve("w")
        await bed.enqueue(Task("t", id="a", retry=5))
        await bed.retry(await bed.lease(), "ValueError: no luck\n\ntrace", 100)
        told = await why(bed, "a")
        assert (told.reason, told.attempt, told.retry) == ("retry", 2, 5)
        assert told.sentence.startswith("Retry 1 of 5 at 2")
        assert told.sentence.endswith("Last error: ValueError: no luck")
        assert (await bed.inspector.run("a")).ok
        told = await why(bed, "a")
        assert told.sentence == "Waiting: 1st of 1. Next is attempt 2 of 6."

    run(store, prefix, work)


def test_task_without_a_handler_is_explained(store: Store, prefix: str) -> None:
    async def work(bed: Bed) -> None:
        await bed.serve("w", types=["u"])
        await bed.enqueue(Task("t", id="a"))
        [held] = await bed.lease()
        record = codec.encode(Failure(unknown_since_us=1_700_000_000 * S, unknown_times=3))
        back = HandedBack(*held, 40 * S, record)
        await bed.broker.run(ops.hand_back(bed.keys(), [back]))
        told = await why(bed, "a")
        assert (told.reason, told.also) == ("handed_back", ["no_server_knows"])
        assert told.sentence.startswith(
            "Returned to the queue 3 times by servers without a handler for 't'; next try at 2"
        )

    run(store, prefix, work)


def test_running_task_names_its_server(store: Store, prefix: str) -> None:
    async def work(bed: Bed) -> None:
        await bed.enqueue(Task("t", id="a"))
        before = (await bed.inspector.overview()).at
        await bed.lease(server="w")
        told = await why(bed, "a")
        assert (told.reason, told.server) == ("active", "w")
        assert "The server stopped responding" in told.sentence
        await bed.serve("w")
        told = await why(bed, "a")
        assert told.since is not None
        assert told.since >= before
        assert told.lease_until is not None
        assert told.lease_until - told.since == timedelta(microseconds=POLICY.lease_us)
        assert re.fullmatch(
            r"Running for [\d.]+ m?s on w\. Its lease expires in .* unless .*\.",
            told.sentence,
        )
        await bed.inspector.cancel("a")
        assert (await why(bed, "a")).also == ["cancelled"]
        await bed.broker.run(ops.abandon(bed.keys(), "w"))
        told = await why(bed, "a")
        assert told.reason == "lapsed"
        assert "Its server died" in told.sentence
        assert told.lease_until is not None
        assert told.lease_until.year == before.year

    run(store, prefix, work)


def test_crashed_task_names_its_crashes(store: Store, prefix: str) -> None:
    async def work(bed: Bed) -> None:
        await bed.serve("w")
        await bed.enqueue(Task("t", id="a"))
        with store.client() as client:
            client.hset(bed.keys().key("crashes"), "a", "2")
        told = await why(bed, "a")
        assert told.crashes == 2
        assert told.sentence == (
            "Waiting: 1st of 1. It runs alone, because its server crashed twice while running it."
        )

    run(store, prefix, work)


def test_ended_task_names_its_end(store: Store, prefix: str) -> None:
    async def work(bed: Bed) -> None:
        await bed.enqueue(Task("t", id="c", retention=60))
        await bed.complete(await bed.lease(), 60, b"")
        await bed.enqueue(Task("t", id="x", retention=60))
        await bed.inspector.cancel("x")
        await bed.dead(Task("t", id="d"), error="KeyError: 'a'\ntrace")
        assert (await why(bed, "c")).sentence.startswith("Completed at 2")
        assert (await why(bed, "x")).sentence.startswith("Cancelled at 2")
        dead = await why(bed, "d")
        assert dead.reason == "dead"
        assert dead.at is not None
        assert dead.sentence == (
            f"Dead since {dead.at:%Y-%m-%d %H:%M:%S} UTC. Last error: KeyError: 'a'"
        )
        gone = await why(bed, "gone", queue="default")
        assert gone.sentence.startswith("Not in queue default: ")

    run(store, prefix, work)


def test_task_past_its_deadline_is_explained(store: Store, prefix: str) -> None:
    async def work(bed: Bed) -> None:
        await bed.serve("w")
        await bed.enqueue(Task("t", id="a", deadline=datetime.now(UTC) + timedelta(seconds=0.05)))
        async with asyncio.timeout(10):
            while "deadline" not in (told := await why(bed, "a")).also:
                pass
        assert (told.reason, told.also) == ("next", ["deadline"])
        assert "Its deadline has passed" in told.sentence

    run(store, prefix, work)


def test_task_behind_higher_priorities_is_explained(store: Store, prefix: str) -> None:
    async def work(bed: Bed) -> None:
        await bed.serve("w")
        await bed.enqueue(Task("t", id="n"), Task("t", id="low", priority=2))
        assert (await why(bed, "n")).sentence == "Waiting: 1st of 2."
        assert (await why(bed, "low")).sentence == (
            "Waiting: 2nd of 2. Its priority is 2: 1 task of a higher priority starts before it."
        )
        await bed.enqueue(Task("t", id="high", priority=9), Task("t", id="high2", priority=9))
        assert (await why(bed, "high")).sentence == "Waiting: 1st of 4. Its priority is 9."
        told = await why(bed, "n")
        assert told.rank == 2
        assert told.sentence == (
            "Waiting: 3rd of 4. Its priority is 5: 2 tasks of a higher priority start before it."
        )
        page = await bed.inspector.tasks("default", "pending")
        assert [(row.id, row.priority) for row in page.tasks] == [
            ("high", 9), ("high2", 9), ("n", 5), ("low", 2),
        ]  # fmt: skip

    run(store, prefix, work)


def test_debounced_task_is_explained(store: Store, prefix: str) -> None:
    async def work(bed: Bed) -> None:
        await bed.serve("w")
        key = {"unique_key": "doc"}
        await bed.enqueue(Task("t", 1, id="a", **key, debounce=60, debounce_max=600))
        told = await why(bed, "a")
        assert (told.reason, told.at is None) == ("debounced", False)
        assert "It runs 1 min after the last call with its unique key, but no later than 20" in (
            told.sentence
        )
        assert told.sentence.endswith(" UTC, which is 10 min after the first call.")
        await bed.enqueue(Task("t", 2, id="b", **key, on_duplicate="replace"))
        detail = await bed.inspector.task("a")
        assert detail is not None
        assert (detail.value(), detail.replaces, detail.debounce) == (2, True, None)
        await bed.lease(server="w")
        await bed.enqueue(Task("t", 3, id="c", **key, debounce=60))
        told = await why(bed, "a")
        assert (told.reason, told.also) == ("active", ["replaced"])
        assert (
            "A later call with its unique key waits: when this attempt has ended" in told.sentence
        )
        detail = await bed.inspector.task("a")
        assert detail is not None
        assert detail.next_run_at == told.at is not None
        assert detail.value() == 2, "the payload of the running attempt"

    run(store, prefix, work)


def test_explanation_reads_a_bounded_number_of_servers(valkey: Store, prefix: str) -> None:
    async def work(bed: Bed) -> None:
        await bed.enqueue(Task("t", id="a"))
        keys = GlobalKeys(prefix)
        for at in range(0, 1500, 100):
            calls = [
                registry_ops.server_heartbeat(keys, f"s{n}", ttl_us=60 * S)
                for n in range(at, at + 100)
            ]
            await bed.broker.run_many(calls)
        assert len(await bed.inspector.servers()) == 1000
        assert (await why(bed, "a")).reason == "no_server"

    run(valkey, prefix, work)
